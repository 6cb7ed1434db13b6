//! Devices.
//!
//! Terms run on dfdx tensors through [`Backend`], in `f32` or `f64`. Encoders and optimizers work on raw
//! buffers of the device through [`Compute`]. Clusterers and probes work on the host, and may ask the device
//! for their longest computations. Both traits are implemented for dfdx's `Cpu` and, with the feature `cuda`,
//! for its `Cuda`. Only this file, `cpu.rs` and `cuda.rs` distinguish between devices.

use crate::clusterer::ClustersOnDevice;
use crate::ops::{self, Matrix};
use crate::probe::ProbesOnDevice;
use crate::softmax::SoftmaxKernels;
use crate::term::{ContrastiveLoss, PortableLoss, PortableRegularizer, Regularizer};
use crate::{EncoderConfig, Error, Optimizer, Result};
use dfdx::prelude::{Cpu, Device, Dtype, OwnedTape, Rank0, Shape, Storage, Tensor};

/// The element types of terms: `f32` in training, `f64` in checks.
pub trait Scalar:
    Dtype + num_traits::Float + num_traits::FromPrimitive + rand_distr::uniform::SampleUniform
{
    /// Converts a literal or a recipe's value; every finite `f64` has a nearest `f32`.
    fn of(v: f64) -> Self;
    /// Converts to `f64`, exactly.
    fn as_f64(self) -> f64;
}

impl Scalar for f32 {
    fn of(v: f64) -> Self {
        v as f32
    }
    fn as_f64(self) -> f64 {
        self as f64
    }
}

impl Scalar for f64 {
    fn of(v: f64) -> Self {
        v
    }
    fn as_f64(self) -> f64 {
        self
    }
}

/// The tape that records operations for the backward pass.
pub type Tape<E, D> = OwnedTape<E, D>;
/// A tensor that carries a tape.
pub type Taped<S, E, D> = Tensor<S, E, D, OwnedTape<E, D>>;
/// A scalar that carries a tape: the value of a term.
pub type Value<E, D> = Taped<Rank0, E, D>;

/// A dfdx device that terms can run on.
///
/// Terms call the functions in [`ops`]. The functions here with a default are replaced by devices that have a
/// faster way. They change the speed and the rounding of a term, not its definition.
pub trait Backend<E: Scalar>: Device<E> {
    /// The device's kernels for a softmax; [`NoKernels`](crate::softmax::NoKernels) if it has none.
    type Softmax: SoftmaxKernels<E, Self>;

    /// Returns the device's kernels for a softmax, if it has any.
    ///
    /// # Errors
    /// If the device fails.
    fn softmax_kernels(&self) -> Result<Option<Self::Softmax>> {
        Ok(None)
    }
    /// Returns the loss for this device.
    fn loss(term: &dyn PortableLoss) -> &dyn ContrastiveLoss<E, Self>;
    /// Returns the regularizer for this device.
    fn regularizer(term: &dyn PortableRegularizer) -> &dyn Regularizer<E, Self>;

    /// [`ops::l2_normalize`] of at least one row, by default in dfdx operations.
    ///
    /// # Shapes
    /// (N, D) → (N, D)
    fn l2_normalize<T: dfdx::prelude::Tape<E, Self>>(x: Matrix<E, Self, T>) -> Matrix<E, Self, T> {
        ops::l2_normalize_plain(x)
    }

    /// [`ops::to_host`], by default with dfdx's own copy.
    ///
    /// # Shapes
    /// any shape → as many values as it has elements
    ///
    /// # Errors
    /// If the device fails.
    fn to_host<S: Shape>(tensor: &Tensor<S, E, Self>) -> Result<Vec<E>> {
        Ok(tensor.as_vec())
    }
}

/// A device that can run whole networks and optimizers: it has buffers of `f32` in addition to tensors.
pub trait Compute: Backend<f32> {
    /// An owned buffer in the device's memory.
    type Buffer: std::fmt::Debug + 'static;

    /// Returns the name for `--device`, such as `cpu`.
    fn name(&self) -> String;
    /// Allocates a buffer with the given content.
    ///
    /// # Shapes
    /// values n → a buffer of n
    ///
    /// # Errors
    /// If the device fails.
    fn upload(&self, values: &[f32]) -> Result<Self::Buffer>;
    /// Copies the content of a buffer to the host.
    ///
    /// # Shapes
    /// a buffer of n → n values
    ///
    /// # Errors
    /// If the device fails.
    fn download(&self, buffer: &Self::Buffer) -> Result<Vec<f32>>;
    /// Overwrites a buffer with values of the same length.
    ///
    /// # Shapes
    /// a buffer of n, values n
    ///
    /// # Errors
    /// If the lengths differ, or the device fails.
    fn overwrite(&self, buffer: &mut Self::Buffer, values: &[f32]) -> Result<()>;
    /// Allocates a buffer of zeros.
    ///
    /// # Errors
    /// If the device fails.
    fn zero_buffer(&self, len: usize) -> Result<Self::Buffer>;
    /// Sets buffers to zero.
    ///
    /// # Errors
    /// If the device fails.
    fn clear(&self, buffers: &mut [&mut Self::Buffer]) -> Result<()>;
    /// Returns the number of elements.
    fn buffer_len(&self, buffer: &Self::Buffer) -> usize;
    /// Returns a tensor with a copy of the buffer's content.
    ///
    /// # Shapes
    /// a buffer with one value per element of the shape, row-major
    ///
    /// # Errors
    /// If the number of values does not match the shape, or the device fails.
    fn buffer_tensor<S: Shape>(&self, buffer: &Self::Buffer, shape: S) -> Result<Tensor<S, f32, Self>>;
    /// Adds a gradient in dfdx's format to a buffer.
    ///
    /// # Errors
    /// If the lengths differ, or the device fails.
    fn add_gradient(&self, to: &mut Self::Buffer, gradient: &<Self as Storage<f32>>::Vec) -> Result<()>;
    /// Adds a buffer to another one, element by element.
    ///
    /// # Errors
    /// If the lengths differ, or the device fails.
    fn add_buffer(&self, to: &mut Self::Buffer, summand: &Self::Buffer) -> Result<()>;

    /// Returns the device's operations for clusterers, or `None` if the host does the work.
    fn clusters_on_device(&self) -> Option<&dyn ClustersOnDevice> {
        None
    }

    /// Returns the device's operations for probes, or `None` if the host does the work.
    fn probes_on_device(&self) -> Option<&dyn ProbesOnDevice> {
        None
    }

    /// Returns the encoder configuration for this device.
    fn encoder(config: &dyn PortableEncoder) -> &dyn EncoderConfig<Self>;
    /// Returns the optimizer for this device.
    fn optimizer(config: &dyn PortableOptimizer) -> &dyn Optimizer<Self>;
}

impl Compute for Cpu {
    type Buffer = Vec<f32>;

    fn name(&self) -> String {
        "cpu".into()
    }
    fn upload(&self, values: &[f32]) -> Result<Vec<f32>> {
        Ok(values.to_vec())
    }
    fn download(&self, buffer: &Vec<f32>) -> Result<Vec<f32>> {
        Ok(buffer.clone())
    }
    fn overwrite(&self, buffer: &mut Vec<f32>, values: &[f32]) -> Result<()> {
        if buffer.len() != values.len() {
            return Err(Error::shape(
                "overwrite",
                format!("{} values for a buffer of {}", values.len(), buffer.len()),
            ));
        }
        buffer.copy_from_slice(values);
        Ok(())
    }
    fn zero_buffer(&self, len: usize) -> Result<Vec<f32>> {
        Ok(vec![0.0; len])
    }
    fn clear(&self, buffers: &mut [&mut Vec<f32>]) -> Result<()> {
        buffers.iter_mut().for_each(|b| b.fill(0.0));
        Ok(())
    }
    fn buffer_len(&self, buffer: &Vec<f32>) -> usize {
        buffer.len()
    }
    fn buffer_tensor<S: Shape>(&self, buffer: &Vec<f32>, shape: S) -> Result<Tensor<S, f32, Self>> {
        use dfdx::prelude::TensorFromVec;
        self.try_tensor_from_vec(buffer.clone(), shape).map_err(Error::device)
    }
    fn add_gradient(&self, to: &mut Vec<f32>, gradient: &<Self as Storage<f32>>::Vec) -> Result<()> {
        for (t, g) in to.iter_mut().zip(gradient.iter()) {
            *t += g;
        }
        Ok(())
    }
    fn add_buffer(&self, to: &mut Vec<f32>, summand: &Vec<f32>) -> Result<()> {
        if to.len() != summand.len() {
            let message = format!("{} values to a buffer of {}", summand.len(), to.len());
            return Err(Error::shape("add", message));
        }
        to.iter_mut().zip(summand).for_each(|(t, s)| *t += s);
        Ok(())
    }

    fn encoder(config: &dyn PortableEncoder) -> &dyn EncoderConfig<Self> {
        config
    }
    fn optimizer(config: &dyn PortableOptimizer) -> &dyn Optimizer<Self> {
        config
    }
}

/// Declares traits of components that work on every device of this build.
macro_rules! portable {
    ($($(#[$doc:meta])* $name:ident: $on:ident;)*) => { $(
        #[cfg(not(feature = "cuda"))]
        $(#[$doc])*
        pub trait $name: crate::registry::Component + $on<Cpu> {}
        #[cfg(not(feature = "cuda"))]
        impl<T: crate::registry::Component + $on<Cpu>> $name for T {}
        #[cfg(feature = "cuda")]
        $(#[$doc])*
        pub trait $name: crate::registry::Component + $on<Cpu> + $on<dfdx::prelude::Cuda> {}
        #[cfg(feature = "cuda")]
        impl<T: crate::registry::Component + $on<Cpu> + $on<dfdx::prelude::Cuda>> $name for T {}
    )* };
}

portable! {
    /// An encoder configuration for every device of this build.
    PortableEncoder: EncoderConfig;
    /// An optimizer for every device of this build.
    PortableOptimizer: Optimizer;
}
