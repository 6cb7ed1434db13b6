//! Temporary memory of convolutions.

use super::program::Workspace;
use crate::feature_map::{FeatureMap, MapSlice};
use crate::kernel_args::{In, Out, args};
use crate::{Buffer, Context, Element, Result};

/// Temporary memory shared by convolutions that run one after the other. It grows to the largest need.
#[derive(Debug, Default)]
pub struct Scratch {
    /// cuDNN's workspace.
    pub(super) workspace: CudnnSpace,
    /// A gradient of weights in cuDNN's order.
    pub(super) gradient: FilterSpace,
    /// The TF32 parts of both operands.
    pub(super) split: [SplitSpace; 2],
}

/// Memory for cuDNN.
#[derive(Debug, Default)]
pub(super) struct CudnnSpace(Option<Buffer>);

impl CudnnSpace {
    /// Returns a workspace of `bytes` bytes.
    pub fn at_least(&mut self, on: &Context, bytes: usize) -> Result<Workspace> {
        if bytes == 0 {
            return Ok((std::ptr::null_mut(), 0));
        }
        let words = bytes.div_ceil(size_of::<f32>());
        // Free a buffer that is too small before allocating a larger one.
        let space = match self.0.take().filter(|b| b.len() >= words) {
            Some(space) => space,
            None => Buffer::uninit(on, words)?,
        };
        Ok((self.0.insert(space).address() as *mut _, bytes))
    }
}

/// Memory for a gradient of weights.
#[derive(Debug, Default)]
pub(super) struct FilterSpace(Option<FeatureMap>);

impl FilterSpace {
    /// Returns a map of at least `len` elements.
    pub fn at_least(&mut self, on: &Context, len: usize, element: Element) -> Result<&mut FeatureMap> {
        let space = match self.0.take().filter(|f| f.len() >= len && f.element() == element) {
            Some(space) => space,
            None => FeatureMap::uninit(on, len, element)?,
        };
        Ok(self.0.insert(space))
    }
}

/// Memory for the TF32 parts of an operand.
#[derive(Debug, Default)]
pub(super) struct SplitSpace(Option<[FeatureMap; 2]>);

impl SplitSpace {
    /// Splits each `f32` into the sum of two TF32 numbers: a high part of 11 mantissa bits, and the
    /// remainder, of which tensor cores read 11 bits as well.
    pub fn split(&mut self, on: &Context, operand: MapSlice<'_>) -> Result<[MapSlice<'_>; 2]> {
        let n = operand.len();
        let [high, low] = match self.0.take().filter(|[high, _]| high.len() >= n) {
            Some(parts) => self.0.insert(parts),
            None => {
                let uninit = || FeatureMap::uninit(on, n, Element::F32);
                self.0.insert([uninit()?, uninit()?])
            }
        };
        let args = args![n, In(operand), Out(high.slice_mut()), Out(low.slice_mut())];
        // SAFETY: n is the operand's length. Both parts were allocated above, or earlier for an operand at
        // least as long.
        unsafe { on.launch_over("pauc_split_tf32", if n.is_multiple_of(4) { n / 4 } else { n }, args) }?;
        Ok([high.slice(), low.slice()])
    }
}
