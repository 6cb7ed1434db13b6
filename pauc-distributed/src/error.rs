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
    /// The MPI library reported an error.
    #[error("{function}: {message}")]
    Mpi {
        /// The function, such as `MPI_Allgather`.
        function: &'static str,
        /// The library's message.
        message: String,
    },
    /// A rank was asked to stop, and all ranks know it.
    #[error("the ranks were asked to stop")]
    Stopped,
    /// MPI was called by another thread than the one that started it.
    #[error("{0} was called by another thread than the one that started MPI")]
    Thread(&'static str),
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
        match e {
            CommunicationError::Stopped => pauc_traits::Error::Stopped,
            e => pauc_traits::Error::Other(Box::new(e)),
        }
    }
}
