//! Bounds of single sizes. Within them, products of sizes do not overflow, so that whole networks can be
//! counted before they are built.

use pauc_traits::{Error, Result};

/// The largest width of a layer.
pub const MAX_WIDTH: usize = 1 << 20;
/// The largest number of blocks of a transformer.
pub const MAX_DEPTH: usize = 1 << 12;
/// The largest number of registers of a transformer.
pub const MAX_REGISTERS: usize = 1 << 12;
/// The largest ratio of a hidden width to a width.
pub const MAX_RATIO: usize = 1 << 10;

/// Checks the width of a layer that the field `field` has set.
///
/// # Errors
/// If it is larger than [`MAX_WIDTH`].
pub fn width(field: &str, value: usize) -> Result<usize> {
    at_most(field, value, MAX_WIDTH)
}

/// Checks that `field` is at most `bound`.
///
/// # Errors
/// If it is larger.
pub fn at_most(field: &str, value: usize, bound: usize) -> Result<usize> {
    if value > bound {
        return Err(Error::config(format!("`{field}` is at most {bound}, got {value}")));
    }
    Ok(value)
}
