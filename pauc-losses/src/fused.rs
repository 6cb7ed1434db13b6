//! Single precision on the CPU: terms through the streaming kernels of [`pauc_kernels::softmax`].
//!
//! The plain composition of dfdx operations in a term's own file stays its definition, for double precision and for
//! every other device; tests compare the two. A term asks [`on_cpu`] first, and the kernel answers with value and
//! gradient at once, so that the operation on the tape only scales.

use dfdx::prelude::*;
use pauc_traits::backend::{Backend, Scalar, Tape as OwnedTape, Value};
use pauc_traits::ops::Matrix;
pub(crate) use pauc_traits::ops::values;
use pauc_traits::{Batch, Result, ops};
use std::any::Any;

pub(crate) use pauc_kernels::softmax::{Bank, Scale, cross_entropy, in_batch};

/// A batch in single precision on the CPU.
pub(crate) type CpuBatch = Batch<f32, Cpu>;

/// What `term` makes of the batch if it is one of the CPU in single precision; `None` for any other, and where `term`
/// itself has no faster way.
pub(crate) fn on_cpu<E: Scalar, D: Backend<E>>(
    batch: &Batch<E, D>,
    term: impl FnOnce(&CpuBatch) -> Result<Option<Value<f32, Cpu>>>,
) -> Result<Option<Value<E, D>>> {
    let found = (batch as &dyn Any).downcast_ref::<CpuBatch>();
    let Some(batch) = found.filter(|b| b.size() > 0 && b.dim() > 0) else { return Ok(None) };
    let value = term(batch)?.map(|v| Box::new(v) as Box<dyn Any>);
    Ok(value.and_then(|v| v.downcast::<Value<E, D>>().ok()).map(|v| *v))
}

/// A matrix and its elements in row-major order.
pub(crate) type Embeddings = (Matrix<f32, Cpu>, Vec<f32>);

/// The embeddings z of a view, to be differentiated by, and their elements; `None` if dfdx laid them out otherwise than
/// row by row, as a gradient for them then would be.
pub(crate) fn embeddings(batch: &CpuBatch, view: usize) -> Result<Option<Embeddings>> {
    let z = batch.z(view)?.split_tape().0;
    let elements = values(&z);
    Ok(ops::is_row_major(&z).then_some((z, elements)))
}

/// Σ a·b in double precision.
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// A scalar whose gradients with respect to matrices are known already.
pub(crate) fn scalar_with_gradients(
    device: &Cpu,
    value: f64,
    gradients: Vec<(Matrix<f32, Cpu>, Vec<f32>)>,
) -> Value<f32, Cpu> {
    let out: Tensor<Rank0, f32, Cpu> = device.tensor_from_vec(vec![value as f32], ());
    let ghost = out.ghost();
    let mut tape = OwnedTape::default();
    tape.add_backward_op(move |all: &mut Gradients<f32, Cpu>| {
        let scale = all.get_or_alloc_mut(&ghost)?[0];
        for (of, known) in &gradients {
            let sum = all.get_or_alloc_mut(of)?;
            sum.iter_mut().zip(known).for_each(|(s, g)| *s += scale * g);
        }
        Ok(())
    });
    out.put_tape(tape)
}
