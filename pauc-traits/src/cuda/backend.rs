//! `Cuda` as a device for terms: dfdx's operations, with single kernels in place of long sequences.

use super::{OnDevice, context};
use crate::Result;
use crate::backend::{Backend, Value};
use crate::batch::Constant;
use crate::ops::{self, Matrix, NORM_EPSILON};
use crate::softmax::{Bank, FusedLoss, Graded, Positives, RowGradient, SoftmaxKernels, Weighted};
use crate::term::{ContrastiveLoss, PortableLoss, PortableRegularizer, Regularizer};
use dfdx::prelude::*;
use pauc_cuda::tensor::{self, Contiguous};
use pauc_cuda::{Buffer, Context, elementwise, memory, rows, softmax};
use std::rc::Rc;

impl Backend<f32> for Cuda {
    type Softmax = CudaSoftmax;

    fn loss(term: &dyn PortableLoss) -> &dyn ContrastiveLoss<f32, Self> {
        term
    }
    fn regularizer(term: &dyn PortableRegularizer) -> &dyn Regularizer<f32, Self> {
        term
    }
    fn l2_normalize<T: Tape<f32, Self>>(x: Matrix<f32, Self, T>) -> Matrix<f32, Self, T> {
        l2_normalize(x)
    }
    fn to_host<S: Shape>(tensor: &Tensor<S, f32, Self>) -> Result<Vec<f32>> {
        tensor::to_host(tensor).on_device()
    }
    fn softmax_kernels(&self) -> Result<Option<CudaSoftmax>> {
        Ok(Some(CudaSoftmax { device: self.clone(), on: context(self)? }))
    }
}

/// [`ops::l2_normalize`] with one kernel per direction.
fn l2_normalize<T: Tape<f32, Cuda>>(x: Matrix<f32, Cuda, T>) -> Matrix<f32, Cuda, T> {
    let (x, mut tape) = x.contiguous().split_tape(); // (N, D)
    let unit_rows = || -> pauc_cuda::Result<_> {
        let (z, inverses) = rows::unit(&x, NORM_EPSILON as f32)?; // (N, D), N
        Ok((z.clone(), Contiguous::new(z)?, inverses))
    };
    // An operation that fails here fails again in dfdx's operations, which report the error.
    let Ok((z, elements, inverses)) = unit_rows() else { return ops::l2_normalize_plain(x.put_tape(tape)) };
    if T::OWNS_TAPE {
        let (x, of_z) = (x.ghost(), z.ghost());
        tape.add_backward_op(move |gradients: &mut Gradients<f32, Cuda>| {
            let g = tensor::gradient_copy(gradients.get_or_alloc_mut(&of_z)?)?;
            let sum = tensor::gradient_mut(gradients.get_or_alloc_mut(&x)?);
            Ok(rows::unit_gradient(&elements, g.view(), &inverses, sum)?)
        });
    }
    z.put_tape(tape)
}

/// The kernels of [`pauc_cuda::softmax`]. Numbers are buffers of one element, so that the host does not wait
/// for them.
pub struct CudaSoftmax {
    device: Cuda,
    on: Rc<Context>,
}

impl SoftmaxKernels<f32, Cuda> for CudaSoftmax {
    type Rows = Contiguous<(usize, usize)>;
    type Number = Buffer;
    type Gradient = Buffer;

    fn rows<T: Tape<f32, Cuda>>(&self, matrix: &Matrix<f32, Cuda, T>) -> Result<Self::Rows> {
        Contiguous::new(matrix.retaped()).on_device()
    }

    fn constant_rows(&self, constant: &Constant<f32, Cuda>) -> Result<Self::Rows> {
        Contiguous::new(constant.tensor()).on_device()
    }

    fn cross_entropy(
        &self,
        queries: &Self::Rows,
        positives: Positives<&Self::Rows>,
        banks: &[Bank<'_, &Self::Rows>],
        dim: usize,
    ) -> Result<Graded<Buffer, Buffer>> {
        let positives = match positives {
            Positives::Rows(rows, scale) => Positives::Rows(rows.view(), scale),
            Positives::Own => Positives::Own,
        };
        let banks: Vec<_> =
            banks.iter().map(|b| Bank { rows: b.rows.view(), scale: b.scale, own: b.own }).collect();
        softmax::cross_entropy(&self.on, queries.view(), positives, &banks, dim).on_device()
    }

    fn in_batch(
        &self,
        views: [&Self::Rows; 2],
        scale: f32,
        dim: usize,
    ) -> Result<Graded<Buffer, [Buffer; 2]>> {
        let half = views[0].view().len();
        let compute = || {
            let mut rows = Buffer::uninit(&self.on, 2 * half)?; // (2B, D)
            let (first, second) = rows.split_in_half_mut();
            memory::copy(&self.on, views[0].view(), first)?;
            memory::copy(&self.on, views[1].view(), second)?;
            let graded = softmax::in_batch(&self.on, rows.view(), dim, scale)?; // scalar, (2B, D)
            let gradient = graded.gradient.view();
            let first = Buffer::copy_of(&self.on, gradient.first(half))?; // (B, D)
            let second = Buffer::copy_of(&self.on, gradient.part(half, half))?; // (B, D)
            Ok(Graded { value: graded.value, gradient: [first, second] })
        };
        pauc_cuda::Result::on_device(compute())
    }

    fn dot(&self, rows: &[&Self::Rows], gradients: &[&Buffer]) -> Result<Buffer> {
        let dots = rows.iter().zip(gradients).map(|(rows, gradient)| {
            let summand = softmax::dot(&self.on, rows.view(), gradient.view()).on_device()?;
            Ok(Weighted { weight: 1.0, summand })
        });
        self.sum(dots.collect::<Result<_>>()?).on_device()
    }

    fn record(&self, loss: FusedLoss<f32, Cuda, Self>) -> Result<Value<f32, Cuda>> {
        let value = self.sum(loss.value).and_then(|sum| tensor::to_tensor(&self.device, sum.view(), ()));
        let value: Tensor<Rank0, f32, Cuda> = value.on_device()?;
        let (of_value, mut tape, mut known) = (value.ghost(), OwnedTape::default(), Vec::new());
        for RowGradient { rows, gradient } in loss.gradients {
            let (rows, own) = rows.split_tape();
            tape = tape.merge(own);
            known.push((rows, gradient));
        }
        if let Some(temperature) = loss.temperature {
            let derivative = self.sum(temperature.derivative).on_device()?;
            known.push((temperature.leaf, Weighted { weight: 1.0, summand: derivative }));
        }
        let on = self.on.clone();
        tape.add_backward_op(move |gradients: &mut Gradients<f32, Cuda>| {
            // The gradient of the loss stays on the device.
            let factor = Buffer::copy_of(&on, tensor::gradient(gradients.get_or_alloc_mut(&of_value)?))?;
            for (rows, Weighted { weight, summand }) in &known {
                let sum = tensor::gradient_mut(gradients.get_or_alloc_mut(rows)?);
                elementwise::add_times(&on, sum, &factor, *weight as f32, summand.view())?;
            }
            Ok(())
        });
        Ok(value.put_tape(tape))
    }
}

impl CudaSoftmax {
    fn sum(&self, mut numbers: Vec<Weighted<Buffer>>) -> pauc_cuda::Result<Buffer> {
        if numbers.len() == 1
            && numbers[0].weight == 1.0
            && let Some(only) = numbers.pop()
        {
            return Ok(only.summand);
        }
        let mut sum = Buffer::zeros(&self.on, 1)?;
        for Weighted { weight, summand } in numbers {
            elementwise::add(&self.on, sum.view_mut(), weight as f32, summand.view())?;
        }
        Ok(sum)
    }
}
