//! Terms against large banks on CUDA, through the kernels of [`pauc_cuda::softmax`]: no matrix of all logits where that would be large.
//!
//! As on the CPU, the plain composition in a term's own file stays its definition, and tests compare the two.

use dfdx::prelude::*;
use pauc_cuda::tensor::{self, Contiguous};
use pauc_cuda::{Buffer, Context, elementwise, memory};
use pauc_traits::backend::{Backend, Scalar, Tape as OwnedTape, Value};
use pauc_traits::cuda::OnDevice;
use pauc_traits::ops::Matrix;
use pauc_traits::{Batch, Result, Taped};
use std::any::Any;
use std::rc::Rc;

pub(crate) use pauc_cuda::softmax::{Bank, Graded, Positives, Scale};

/// A batch on CUDA.
pub(crate) type CudaBatch = Batch<f32, Cuda>;
/// Rows with gradient on CUDA.
pub(crate) type CudaRows = Taped<(usize, usize), f32, Cuda>;

#[cfg(test)]
thread_local! {
    /// Lets tests choose the plain compositions.
    pub(crate) static PLAIN: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// The value of `term` if the batch is on CUDA; `None` if it is not, or if `term` has no kernel for it.
pub(crate) fn on_cuda<E: Scalar, D: Backend<E>>(
    batch: &Batch<E, D>,
    term: impl FnOnce(&CudaBatch) -> Result<Option<Value<f32, Cuda>>>,
) -> Result<Option<Value<E, D>>> {
    #[cfg(test)]
    if PLAIN.get() {
        return Ok(None);
    }
    let on_cuda = (batch as &dyn Any).downcast_ref::<CudaBatch>();
    let Some(batch) = on_cuda.filter(|b| b.size() > 0 && b.dim() > 0) else { return Ok(None) };
    let value = term(batch)?.map(|v| Box::new(v) as Box<dyn Any>);
    Ok(value.and_then(|v| v.downcast::<Value<E, D>>().ok()).map(|v| *v))
}

/// A matrix as kernels read it.
pub(crate) type DenseRows = Contiguous<(usize, usize)>;

/// The context of the batch's device.
pub(crate) fn context(batch: &CudaBatch) -> Result<Rc<Context>> {
    Context::of(batch.device()).on_device()
}

/// A matrix as kernels read it.
pub(crate) fn dense(m: Matrix<f32, Cuda>) -> Result<DenseRows> {
    Contiguous::new(m).on_device()
}

/// [`pauc_cuda::softmax::cross_entropy`] of queries and positives.
pub(crate) fn cross_entropy(
    on: &Context,
    queries: &DenseRows,
    positives: Positives<'_>,
    banks: &[Bank<'_>],
    dim: usize,
) -> Result<Graded> {
    pauc_cuda::softmax::cross_entropy(on, queries.view(), positives, banks, dim).on_device()
}

/// A value and its gradients with respect to both views.
pub(crate) struct GradedPair {
    /// One number.
    pub value: Buffer,
    pub gradients: [Buffer; 2],
}

/// [`pauc_cuda::softmax::in_batch`] of the rows of two views.
pub(crate) fn in_batch(on: &Context, views: [&DenseRows; 2], dim: usize, tau: f32) -> Result<GradedPair> {
    let half = views[0].view().len();
    let find = || {
        let mut rows = Buffer::uninit(on, 2 * half)?;
        let (first, second) = rows.split_in_half_mut();
        memory::copy(on, views[0].view(), first)?;
        memory::copy(on, views[1].view(), second)?;
        let graded = pauc_cuda::softmax::in_batch(on, rows.view(), dim, 1.0 / tau)?;
        let gradient = graded.gradient.view();
        let [first, second] =
            [gradient.first(half), gradient.part(half, half)].map(|g| Buffer::copy_of(on, g));
        Ok(GradedPair { value: graded.value, gradients: [first?, second?] })
    };
    find().on_device()
}

/// The mean of some numbers whose gradients with respect to matrices are already known, up to a factor of each.
pub(crate) fn scalar_with_gradients(
    on: &Rc<Context>,
    device: &Cuda,
    values: &[Buffer],
    gradients: Vec<(CudaRows, Buffer, f32)>,
) -> Result<Value<f32, Cuda>> {
    let mean = || {
        if let [only] = values {
            return tensor::to_tensor(device, only.view(), ());
        }
        let mut mean = Buffer::zeros(on, 1)?;
        for value in values {
            elementwise::add(on, mean.view_mut(), 1.0 / values.len() as f32, value.view())?;
        }
        tensor::to_tensor(device, mean.view(), ())
    };
    let out: Tensor<Rank0, f32, Cuda> = mean().on_device()?;
    let (ghost, mut tape, mut known) = (out.ghost(), OwnedTape::default(), Vec::new());
    for (rows, gradient, factor) in gradients {
        let (rows, own) = rows.split_tape();
        tape = tape.merge(own);
        known.push((rows, gradient, factor));
    }
    let on = on.clone();
    tape.add_backward_op(move |all: &mut Gradients<f32, Cuda>| {
        // The gradient of the term's value stays on the device.
        let scale = Buffer::copy_of(&on, tensor::gradient(all.get_or_alloc_mut(&ghost)?))?;
        for (rows, gradient, factor) in &known {
            let sum = tensor::gradient_mut(all.get_or_alloc_mut(rows)?);
            elementwise::add_times(&on, sum, &scale, *factor, gradient.view())?;
        }
        Ok(())
    });
    Ok(out.put_tape(tape))
}
