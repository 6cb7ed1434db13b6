//! Convolutions of maps (N, C, H, W), through cuDNN.

use crate::maps::Maps;
use crate::memory::ViewMut;
use crate::{Buffer, Context, Error, Result, View, library};
use cudarc::cudnn::result as dnn;
use cudarc::cudnn::sys;
use pauc_kernels::conv::Geometry;
use std::ffi::c_void;
use std::rc::Rc;

/// How products are rounded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Math {
    /// 24 bits, as everywhere else.
    #[default]
    F32,
    /// Tensor cores with factors rounded to 11 bits; sums have 24.
    Tf32,
}

/// cuDNN on the device's stream.
#[derive(Debug)]
pub struct Dnn {
    handle: sys::cudnnHandle_t,
}

impl Dnn {
    pub(crate) fn new(on: &Context) -> Result<Self> {
        if let Some(problem) = library::CUDNN.problem() {
            let library::Library { name, remedy, .. } = library::CUDNN;
            return Err(Error::Missing { name, problem: problem.into(), remedy });
        }
        on.device().bind_to_thread()?;
        let handle = dnn::create_handle()?;
        // SAFETY: the handle is new, and the stream is the device's.
        unsafe { dnn::set_stream(handle, *on.device().cu_stream() as sys::cudaStream_t) }?;
        Ok(Dnn { handle })
    }
}

impl Drop for Dnn {
    fn drop(&mut self) {
        // SAFETY: nobody else has the handle. There is nobody to tell of a failure.
        let _ = unsafe { dnn::destroy_handle(self.handle) };
    }
}

/// What cuDNN knows a convolution by.
#[derive(Debug)]
struct Descriptors {
    x: sys::cudnnTensorDescriptor_t,
    y: sys::cudnnTensorDescriptor_t,
    w: sys::cudnnFilterDescriptor_t,
    conv: sys::cudnnConvolutionDescriptor_t,
}

impl Drop for Descriptors {
    fn drop(&mut self) {
        // SAFETY: each was created by cuDNN and is destroyed once. There is nobody to tell of a failure.
        unsafe {
            let _ = dnn::destroy_tensor_descriptor(self.x);
            let _ = dnn::destroy_tensor_descriptor(self.y);
            let _ = dnn::destroy_filter_descriptor(self.w);
            let _ = dnn::destroy_convolution_descriptor(self.conv);
        }
    }
}

// These have one result for one input: none adds with atomics.
const FORWARD: sys::cudnnConvolutionFwdAlgo_t =
    sys::cudnnConvolutionFwdAlgo_t::CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_PRECOMP_GEMM;
const INPUT: sys::cudnnConvolutionBwdDataAlgo_t =
    sys::cudnnConvolutionBwdDataAlgo_t::CUDNN_CONVOLUTION_BWD_DATA_ALGO_1;
const WEIGHT: sys::cudnnConvolutionBwdFilterAlgo_t =
    sys::cudnnConvolutionBwdFilterAlgo_t::CUDNN_CONVOLUTION_BWD_FILTER_ALGO_1;

/// A convolution of batches of one size. Weights are in interchange order, (out, in, height, width).
#[derive(Debug)]
pub struct Convolution {
    dnn: Rc<Dnn>,
    of: Descriptors,
    input: Maps,
    output: Maps,
    weights: usize,
    /// Bytes that the three passes need beside their operands.
    work: usize,
}

/// Memory that convolutions use while they run, one after the other.
#[derive(Debug, Default)]
pub struct Work(Option<Buffer>);

impl Work {
    /// At least so many bytes.
    fn of(&mut self, on: &Context, bytes: usize) -> Result<(*mut c_void, usize)> {
        if bytes == 0 {
            return Ok((std::ptr::null_mut(), 0));
        }
        if self.0.as_ref().is_none_or(|b| b.len() * 4 < bytes) {
            self.0 = None;
            self.0 = Some(Buffer::any(on, bytes.div_ceil(4))?);
        }
        let address = self.0.as_ref().map_or(0, Buffer::address);
        Ok((address as *mut c_void, bytes))
    }
}

impl Convolution {
    /// For batches of `batch` images.
    ///
    /// # Errors
    /// If cuDNN is missing or does not take the shape.
    pub fn new(on: &Context, g: Geometry, batch: usize, math: Math) -> Result<Self> {
        let dnn = on.dnn()?;
        let (height, width) = g.output();
        let input = Maps { batch, channels: g.inputs, height: g.height, width: g.width };
        let output = Maps { batch, channels: g.outputs, height, width };
        if input.len().max(output.len()) > i32::MAX as usize {
            let message =
                format!("{input:?} to {output:?}: cuDNN counts elements in 31 bits; use smaller batches");
            return Err(Error::Length { operation: "convolution", message });
        }
        let of = Descriptors {
            x: dnn::create_tensor_descriptor()?,
            y: dnn::create_tensor_descriptor()?,
            w: dnn::create_filter_descriptor()?,
            conv: dnn::create_convolution_descriptor()?,
        };
        let float = sys::cudnnDataType_t::CUDNN_DATA_FLOAT;
        let sides = |m: Maps| [m.batch, m.channels, m.height, m.width].map(|v| v as i32);
        let strides =
            |m: Maps| [m.channels * m.height * m.width, m.height * m.width, m.width, 1].map(|v| v as i32);
        let kernel = [g.outputs, g.inputs, g.kernel, g.kernel].map(|v| v as i32);
        let (pad, stride) = (g.padding as i32, g.stride as i32);
        let cross = sys::cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION;
        let kind = match math {
            Math::F32 => sys::cudnnMathType_t::CUDNN_FMA_MATH,
            Math::Tf32 => sys::cudnnMathType_t::CUDNN_TENSOR_OP_MATH,
        };
        // SAFETY: the descriptors are new, and those that are read have been written before.
        let work = unsafe {
            dnn::set_tensor4d_descriptor_ex(of.x, float, sides(input), strides(input))?;
            dnn::set_tensor4d_descriptor_ex(of.y, float, sides(output), strides(output))?;
            let order = sys::cudnnTensorFormat_t::CUDNN_TENSOR_NCHW;
            dnn::set_filter4d_descriptor(of.w, float, order, kernel)?;
            dnn::set_convolution2d_descriptor(of.conv, pad, pad, stride, stride, 1, 1, cross, float)?;
            dnn::set_convolution_math_type(of.conv, kind)?;
            let h = dnn.handle;
            let forward = dnn::get_convolution_forward_workspace_size(h, of.x, of.w, of.conv, of.y, FORWARD)?;
            let input =
                dnn::get_convolution_backward_data_workspace_size(h, of.w, of.y, of.conv, of.x, INPUT)?;
            let weight =
                dnn::get_convolution_backward_filter_workspace_size(h, of.x, of.y, of.conv, of.w, WEIGHT)?;
            forward.max(input).max(weight)
        };
        Ok(Convolution { dnn, of, input, output, weights: g.weights(), work })
    }

    /// Images a batch.
    pub fn batch(&self) -> usize {
        self.input.batch
    }

    /// Bytes of [`Work`] that it asks for.
    pub fn work(&self) -> usize {
        self.work
    }

    fn check(&self, x: usize, w: usize, y: usize) -> Result<()> {
        if x >= self.input.len() && w == self.weights && y >= self.output.len() {
            return Ok(());
        }
        let message = format!("{:?} to {:?} in {x}, {w} weights and {y}", self.input, self.output);
        Err(Error::Length { operation: "convolution", message })
    }

    /// `y ← w ∗ x`.
    ///
    /// # Errors
    /// If lengths disagree, or the device fails.
    pub fn forward(
        &self,
        on: &Context,
        work: &mut Work,
        x: View<'_>,
        w: &Buffer,
        y: ViewMut<'_>,
    ) -> Result<()> {
        self.check(x.len(), w.len(), y.len())?;
        let ((space, bytes), (one, zero)) = (work.of(on, self.work)?, (1f32, 0f32));
        // SAFETY: operands have the shapes that the descriptors say.
        unsafe {
            dnn::convolution_forward(
                self.dnn.handle,
                std::ptr::from_ref(&one).cast(),
                self.of.x,
                x.address() as *const c_void,
                self.of.w,
                w.address() as *const c_void,
                self.of.conv,
                FORWARD,
                space,
                bytes,
                std::ptr::from_ref(&zero).cast(),
                self.of.y,
                y.address() as *mut c_void,
            )?;
        }
        Ok(())
    }

    /// `dx ← dx·beta +` the gradient of the input.
    ///
    /// # Errors
    /// If lengths disagree, or the device fails.
    pub fn input_gradient(
        &self,
        on: &Context,
        work: &mut Work,
        dy: View<'_>,
        w: &Buffer,
        (dx, beta): (ViewMut<'_>, f32),
    ) -> Result<()> {
        self.check(dx.len(), w.len(), dy.len())?;
        let ((space, bytes), one) = (work.of(on, self.work)?, 1f32);
        // SAFETY: operands have the shapes that the descriptors say.
        unsafe {
            dnn::convolution_backward_data(
                self.dnn.handle,
                std::ptr::from_ref(&one).cast(),
                self.of.w,
                w.address() as *const c_void,
                self.of.y,
                dy.address() as *const c_void,
                self.of.conv,
                INPUT,
                space,
                bytes,
                std::ptr::from_ref(&beta).cast(),
                self.of.x,
                dx.address() as *mut c_void,
            )?;
        }
        Ok(())
    }

    /// `dw ← dw +` the gradient of the weights.
    ///
    /// # Errors
    /// If lengths disagree, or the device fails.
    pub fn weight_gradient(
        &self,
        on: &Context,
        work: &mut Work,
        x: View<'_>,
        dy: View<'_>,
        dw: &mut Buffer,
    ) -> Result<()> {
        self.check(x.len(), dw.len(), dy.len())?;
        let ((space, bytes), one) = (work.of(on, self.work)?, 1f32);
        // SAFETY: operands have the shapes that the descriptors say.
        unsafe {
            dnn::convolution_backward_filter(
                self.dnn.handle,
                std::ptr::from_ref(&one).cast(),
                self.of.x,
                x.address() as *const c_void,
                self.of.y,
                dy.address() as *const c_void,
                self.of.conv,
                WEIGHT,
                space,
                bytes,
                std::ptr::from_ref(&one).cast(),
                self.of.w,
                dw.address() as *mut c_void,
            )?;
        }
        Ok(())
    }
}
