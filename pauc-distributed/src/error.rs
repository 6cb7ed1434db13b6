//! Why ranks cannot exchange data.

/// Why a collective operation failed. The communicator is of no further use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommunicationError {
    /// Lengths that must agree differ, on this rank.
    #[error("{0}")]
    Lengths(String),
    /// The ranks do not call the same operation.
    #[error("rank {} calls {} where rank {} calls {}", .one.rank, .one.what, .other.rank, .other.what)]
    Different {
        /// One of the ranks.
        one: Call,
        /// Another rank.
        other: Call,
    },
    /// Another rank has ended.
    #[error("rank {rank} {how}")]
    Gone {
        /// That rank.
        rank: usize,
        /// How it ended, such as "has panicked: …".
        how: String,
    },
}

/// What a rank calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// The rank.
    pub rank: usize,
    /// The operation and its sizes.
    pub what: String,
}

impl From<CommunicationError> for pauc_traits::Error {
    fn from(e: CommunicationError) -> Self {
        pauc_traits::Error::Other(Box::new(e))
    }
}
