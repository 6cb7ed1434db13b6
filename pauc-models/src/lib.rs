//! Encoders, heads, optimizers with complete state, schedules and weight files.
//!
//! Internal to pauc: any release may change it. Programs depend on `pauc`, components on `pauc-traits`.
#![deny(clippy::print_stdout, clippy::print_stderr)]
#![forbid(unsafe_code)]

pub mod batch_moments;
pub mod bounds;
#[cfg(feature = "cuda")]
mod cuda;
pub mod device;
pub mod drop_path;
pub mod ema;
pub mod encoders;
pub mod encoders_plain;
pub mod heads;
pub mod init;
pub mod network;
pub mod optimizers;
pub mod positions;
pub mod pretrained;
pub mod schedule;
pub mod weights;

pub use device::NetworkDevice;
pub use ema::MomentumConfig;
pub use heads::{Head, HeadConfig};
pub use network::Network;
pub use pauc_kernels::precision::Precision;
pub use pauc_traits::encoder::{BuildOptions, DeviceOptions};
pub use schedule::LrSchedule;
