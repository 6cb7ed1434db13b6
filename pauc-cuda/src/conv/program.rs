//! A convolution set up in cuDNN.

use crate::feature_map::{MapShape, MapSlice, MapSliceMut};
use crate::{Element, Error, Result, cudnn};
use cudarc::cudnn::{result as dnn, sys};
use pauc_kernels::conv::Geometry;
use std::ffi::c_void;
use std::rc::Rc;

/// cuDNN's temporary memory, and its size in bytes.
pub(super) type Workspace = (*mut c_void, usize);

/// The descriptors of a convolution's operands.
#[derive(Debug)]
struct Descriptors {
    x: sys::cudnnTensorDescriptor_t,
    y: sys::cudnnTensorDescriptor_t,
    w: sys::cudnnFilterDescriptor_t,
    conv: sys::cudnnConvolutionDescriptor_t,
}

impl Descriptors {
    /// Creates the descriptors for maps of `element`, with or without tensor cores.
    fn new(
        g: Geometry,
        (input, output): (MapShape, MapShape),
        (element, on_tensor_cores): (Element, bool),
    ) -> Result<Self> {
        let new = Descriptors {
            x: dnn::create_tensor_descriptor()?,
            y: dnn::create_tensor_descriptor()?,
            w: dnn::create_filter_descriptor()?,
            conv: dnn::create_convolution_descriptor()?,
        };
        let float = sys::cudnnDataType_t::CUDNN_DATA_FLOAT;
        let data_type = match element {
            Element::F32 => float,
            Element::Bf16 => sys::cudnnDataType_t::CUDNN_DATA_BFLOAT16,
            Element::F16 => sys::cudnnDataType_t::CUDNN_DATA_HALF,
        };
        let sizes = |m: MapShape| [m.batch, m.channels, m.height, m.width].map(|v| v as i32);
        let strides = |m: MapShape| {
            [m.channels * m.height * m.width, 1, m.width * m.channels, m.channels].map(|v| v as i32)
        };
        let filter = [g.outputs, input.channels, g.kernel, g.kernel].map(|v| v as i32);
        let (pad, stride) = (g.padding as i32, g.stride as i32);
        let cross_correlation = sys::cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION;
        let channels_last = sys::cudnnTensorFormat_t::CUDNN_TENSOR_NHWC;
        let math = match on_tensor_cores {
            false => sys::cudnnMathType_t::CUDNN_FMA_MATH,
            true => sys::cudnnMathType_t::CUDNN_TENSOR_OP_MATH,
        };
        // SAFETY: the descriptors were created above, of these kinds.
        unsafe {
            dnn::set_tensor4d_descriptor_ex(new.x, data_type, sizes(input), strides(input))?;
            dnn::set_tensor4d_descriptor_ex(new.y, data_type, sizes(output), strides(output))?;
            dnn::set_filter4d_descriptor(new.w, data_type, channels_last, filter)?;
            dnn::set_convolution2d_descriptor(
                new.conv,
                pad,
                pad,
                stride,
                stride,
                1,
                1,
                cross_correlation,
                float,
            )?;
            dnn::set_convolution_math_type(new.conv, math)?;
        }
        Ok(new)
    }
}

impl Drop for Descriptors {
    fn drop(&mut self) {
        // SAFETY: all were created in `new` and belong to `self` alone. `drop` cannot report failures.
        unsafe {
            let _ = dnn::destroy_tensor_descriptor(self.x);
            let _ = dnn::destroy_tensor_descriptor(self.y);
            let _ = dnn::destroy_filter_descriptor(self.w);
            let _ = dnn::destroy_convolution_descriptor(self.conv);
        }
    }
}

/// The algorithms of the three passes. All are deterministic: none uses atomics.
const FORWARD: sys::cudnnConvolutionFwdAlgo_t =
    sys::cudnnConvolutionFwdAlgo_t::CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_PRECOMP_GEMM;
const INPUT: sys::cudnnConvolutionBwdDataAlgo_t =
    sys::cudnnConvolutionBwdDataAlgo_t::CUDNN_CONVOLUTION_BWD_DATA_ALGO_1;
const WEIGHT: sys::cudnnConvolutionBwdFilterAlgo_t =
    sys::cudnnConvolutionBwdFilterAlgo_t::CUDNN_CONVOLUTION_BWD_FILTER_ALGO_1;

/// The passes of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Passes {
    All,
    /// The gradient of the weights only.
    Weight,
}

/// A convolution of fixed shapes, set up in cuDNN.
#[derive(Debug)]
pub(super) struct Program {
    dnn: Rc<cudnn::Handle>,
    descriptors: Descriptors,
    /// Bytes of workspace that every pass fits in.
    workspace: usize,
}

impl Program {
    /// Sets up a convolution of maps of `element`, with or without tensor cores.
    pub fn new(
        dnn: Rc<cudnn::Handle>,
        g: Geometry,
        (input, output): (MapShape, MapShape),
        (element, on_tensor_cores): (Element, bool),
        passes: Passes,
    ) -> Result<Self> {
        if input.len().max(output.len()) > i32::MAX as usize {
            let message =
                format!("more than cuDNN's 2³¹ − 1 elements: {input:?} to {output:?}; use smaller batches");
            return Err(Error::Length { operation: "convolution", message });
        }
        let descriptors = Descriptors::new(g, (input, output), (element, on_tensor_cores))?;
        let (h, Descriptors { x, y, w, conv }) = (dnn.raw(), &descriptors);
        // SAFETY: handle and descriptors are alive; `Descriptors::new` has set them up.
        let workspace = unsafe {
            let weight = dnn::get_convolution_backward_filter_workspace_size(h, *x, *y, *conv, *w, WEIGHT)?;
            if passes == Passes::Weight {
                weight
            } else {
                let forward = dnn::get_convolution_forward_workspace_size(h, *x, *w, *conv, *y, FORWARD)?;
                let input = dnn::get_convolution_backward_data_workspace_size(h, *w, *y, *conv, *x, INPUT)?;
                forward.max(input).max(weight)
            }
        };
        Ok(Program { dnn, descriptors, workspace })
    }

    /// Returns the bytes of workspace that every pass fits in.
    pub fn workspace(&self) -> usize {
        self.workspace
    }

    /// `y ← w ∗ x + beta·y`.
    ///
    /// # Safety
    /// The maps and `w` have the shapes and element type given to [`Program::new`], and the workspace has the
    /// size [`Program::workspace`].
    pub unsafe fn forward(
        &self,
        (workspace, bytes): Workspace,
        [x, w]: [MapSlice<'_>; 2],
        (y, beta): (MapSliceMut<'_>, f32),
    ) -> Result<()> {
        let alpha = 1f32;
        // SAFETY: the caller guarantees the device memory. Host pointers are read before the call returns.
        unsafe {
            dnn::convolution_forward(
                self.dnn.raw(),
                std::ptr::from_ref(&alpha).cast(),
                self.descriptors.x,
                x.address() as *const c_void,
                self.descriptors.w,
                w.address() as *const c_void,
                self.descriptors.conv,
                FORWARD,
                workspace,
                bytes,
                std::ptr::from_ref(&beta).cast(),
                self.descriptors.y,
                y.address() as *mut c_void,
            )?;
        }
        Ok(())
    }

    /// `dx ←` the gradient of the input `+ beta·dx`.
    ///
    /// # Safety
    /// As [`Program::forward`].
    pub unsafe fn input_gradient(
        &self,
        (workspace, bytes): Workspace,
        [dy, w]: [MapSlice<'_>; 2],
        (dx, beta): (MapSliceMut<'_>, f32),
    ) -> Result<()> {
        let alpha = 1f32;
        // SAFETY: the caller guarantees the device memory. Host pointers are read before the call returns.
        unsafe {
            dnn::convolution_backward_data(
                self.dnn.raw(),
                std::ptr::from_ref(&alpha).cast(),
                self.descriptors.w,
                w.address() as *const c_void,
                self.descriptors.y,
                dy.address() as *const c_void,
                self.descriptors.conv,
                INPUT,
                workspace,
                bytes,
                std::ptr::from_ref(&beta).cast(),
                self.descriptors.x,
                dx.address() as *mut c_void,
            )?;
        }
        Ok(())
    }

    /// `dw ← alpha·`the gradient of the weights `+ beta·dw`.
    ///
    /// # Safety
    /// As [`Program::forward`].
    pub unsafe fn weight_gradient(
        &self,
        (workspace, bytes): Workspace,
        [x, dy]: [MapSlice<'_>; 2],
        (dw, [alpha, beta]): (MapSliceMut<'_>, [f32; 2]),
    ) -> Result<()> {
        // SAFETY: the caller guarantees the device memory. Host pointers are read before the call returns.
        unsafe {
            dnn::convolution_backward_filter(
                self.dnn.raw(),
                std::ptr::from_ref(&alpha).cast(),
                self.descriptors.x,
                x.address() as *const c_void,
                self.descriptors.y,
                dy.address() as *const c_void,
                self.descriptors.conv,
                WEIGHT,
                workspace,
                bytes,
                std::ptr::from_ref(&beta).cast(),
                self.descriptors.w,
                dw.address() as *mut c_void,
            )?;
        }
        Ok(())
    }
}
