//! Datasets, views and the loader of pauc.
//!
//! Internal to pauc: any release may change it. Programs depend on `pauc`, components on `pauc-traits`.
//!
//! | module | contents |
//! |---|---|
//! | [`datasets`] | datasets, one file each |
//! | [`memory`], [`decode`] | images in memory, decoding of image files |
//! | [`disk_cache`] | a cache of decoded images on disk |
//! | `fetch` | downloads of standard datasets (feature `download`) |
//! | [`views`] | augmentations, one file each |
//! | [`pixels`] | the pixel operations of the augmentations |
//! | [`pipeline`] | a recipe's views, from an image to normalized numbers |
//! | [`loader`] | batches of views, prepared in the background |
//! | [`mod@preview`], [`inspect`], [`throughput`] | previews of views, statistics of datasets, speed of both
//! |
//! | [`mod@survey`] | what a recipe for a dataset has to know |
//! | [`contact_sheet`](mod@contact_sheet), [`sprites`](mod@sprites) | many images on one sheet, for people and for pages |
#![deny(clippy::print_stdout, clippy::print_stderr)]
#![forbid(unsafe_code)]

pub mod contact_sheet;
pub mod datasets;
pub mod decode;
pub mod disk_cache;
#[cfg(feature = "download")]
pub mod fetch;
pub mod inspect;
pub mod interval;
pub mod loader;
pub mod memory;
#[cfg(feature = "parquet")]
pub mod parquet_writer;
pub mod pipeline;
pub mod pixels;
pub mod preview;
pub mod sprites;
pub mod survey;
pub mod throughput;
pub mod views;

pub use contact_sheet::contact_sheet;
pub use interval::Interval;
pub use loader::{Batches, ImageBatch, Loader, LoaderOptions, Order, Share, Throughput};
pub use memory::MemoryImages;
pub use pipeline::{ViewPipeline, ViewSpec};
pub use sprites::{Sprites, sprites};
