//! Parameters: named buffers with gradients that live outside the tape.

use crate::{Compute, Error, Result, Taped};
use dfdx::prelude::{PutTape, Shape, Tape as _};
use std::cell::{Ref, RefCell, RefMut};
use std::rc::Rc;

/// What a parameter is, which decides whether weight decay and layer-wise scaling apply to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Weights of convolutions and linear layers.
    Weight,
    /// Biases.
    Bias,
    /// Scale and shift of normalization layers.
    Norm,
    /// Single numbers with a meaning of their own, such as a temperature: they never decay.
    Scalar,
    /// Running statistics and other state that no gradient reaches.
    Statistic,
}

#[derive(Debug)]
struct Cell<B> {
    value: RefCell<B>,
    grad: RefCell<B>,
    frozen: std::cell::Cell<bool>,
    lr_scale: std::cell::Cell<f64>,
}

/// One named parameter and its gradient, in the device's memory. Cloning shares it.
///
/// Backward passes *add* to the gradient; the optimizer reads it, and whoever starts a step clears it.
#[derive(Debug)]
pub struct Param<D: Compute> {
    /// The name, as torchvision has it for networks that torchvision has.
    pub name: String,
    /// The shape in interchange order, such as (out, in, height, width) for a convolution.
    pub shape: Vec<usize>,
    /// What it is.
    pub role: Role,
    cell: Rc<Cell<D::Buffer>>,
}

impl<D: Compute> Clone for Param<D> {
    fn clone(&self) -> Self {
        Param { name: self.name.clone(), shape: self.shape.clone(), role: self.role, cell: self.cell.clone() }
    }
}

impl<D: Compute> Param<D> {
    /// A parameter with the given values.
    ///
    /// # Shapes
    /// as many values as `shape` has elements, row-major
    ///
    /// # Errors
    /// If the number of values is not the shape's, or the device fails.
    pub fn new(
        device: &D,
        name: impl Into<String>,
        shape: &[usize],
        role: Role,
        values: &[f32],
    ) -> Result<Self> {
        let name = name.into();
        if values.len() != shape.iter().product::<usize>() {
            return Err(Error::shape(name, format!("{} values for shape {shape:?}", values.len())));
        }
        let grad = if role == Role::Statistic { 0 } else { values.len() };
        let cell = Cell {
            value: RefCell::new(device.upload(values)?),
            grad: RefCell::new(device.zero_buffer(grad)?),
            frozen: std::cell::Cell::new(false),
            lr_scale: std::cell::Cell::new(1.0),
        };
        Ok(Param { name, shape: shape.to_vec(), role, cell: Rc::new(cell) })
    }

    /// A parameter of its own with the same values.
    ///
    /// # Errors
    /// If the device fails.
    pub fn deep_clone(&self, device: &D) -> Result<Self> {
        Param::new(device, self.name.clone(), &self.shape, self.role, &device.download(&self.value())?)
    }

    /// The same parameter under a name with a prefix, such as `projector.`.
    pub fn prefixed(&self, prefix: &str) -> Self {
        Param { name: format!("{prefix}{}", self.name), ..self.clone() }
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The values.
    pub fn value(&self) -> Ref<'_, D::Buffer> {
        self.cell.value.borrow()
    }

    /// The values, to change.
    pub fn value_mut(&self) -> RefMut<'_, D::Buffer> {
        self.cell.value.borrow_mut()
    }

    /// The gradient gathered since it was last cleared; empty for a statistic.
    pub fn grad(&self) -> Ref<'_, D::Buffer> {
        self.cell.grad.borrow()
    }

    /// The gradient, to add to.
    pub fn grad_mut(&self) -> RefMut<'_, D::Buffer> {
        self.cell.grad.borrow_mut()
    }

    /// A frozen parameter keeps its value: optimizers skip it.
    pub fn is_frozen(&self) -> bool {
        self.cell.frozen.get()
    }

    /// Freezes or thaws the parameter.
    pub fn set_frozen(&self, frozen: bool) {
        self.cell.frozen.set(frozen);
    }

    /// The factor on the learning rate of this parameter; optimizers multiply by it.
    pub fn lr_scale(&self) -> f64 {
        self.cell.lr_scale.get()
    }

    /// Sets the factor on the learning rate.
    pub fn set_lr_scale(&self, scale: f64) {
        self.cell.lr_scale.set(scale);
    }

    /// The parameter as a leaf tensor on a tape: when the tape runs backwards, the tensor's gradient is added to
    /// this parameter's. For layers written with plain dfdx operations.
    ///
    /// # Shapes
    /// `shape` has as many elements as the parameter
    ///
    /// # Errors
    /// If the shape has another number of elements, or the device fails.
    pub fn traced<S: Shape>(&self, device: &D, shape: S) -> Result<Taped<S, f32, D>> {
        if shape.num_elements() != self.len() {
            return Err(Error::shape(
                self.name.as_str(),
                format!("a parameter of shape {:?} cannot be seen as {shape:?}", self.shape),
            ));
        }
        let leaf = device.buffer_tensor(&self.value(), shape)?;
        let (key, param, on) = (leaf.clone(), self.clone(), device.clone());
        let mut tape = crate::Tape::default();
        tape.add_backward_op(move |gradients| {
            let gradient = gradients.get_or_alloc_mut(&key)?;
            let added = on.add_gradient(&mut param.grad_mut(), gradient);
            debug_assert!(added.is_ok(), "{added:?}");
            Ok(())
        });
        Ok(leaf.put_tape(tape))
    }
}

/// Sets all gradients to zero.
///
/// # Errors
/// If the device fails.
pub fn clear_gradients<D: Compute>(device: &D, params: &[Param<D>]) -> Result<()> {
    let mut gradients: Vec<_> = params.iter().map(Param::grad_mut).collect();
    device.clear(&mut gradients.iter_mut().map(|g| &mut **g).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use dfdx::prelude::*;

    #[test]
    fn a_traced_parameter_receives_the_sum_of_its_gradients() {
        let dev = Cpu::default();
        let p = Param::new(&dev, "w", &[2, 3], Role::Weight, &[1., 2., 3., 4., 5., 6.]).unwrap();
        for _ in 0..2 {
            let w = p.traced(&dev, (2usize, 3usize)).unwrap();
            w.square().sum::<Rank0, _>().backward();
        }
        assert_eq!(*p.grad(), vec![4., 8., 12., 16., 20., 24.]);
        clear_gradients(&dev, std::slice::from_ref(&p)).unwrap();
        assert_eq!(*p.grad(), vec![0.; 6]);
        assert!(p.traced(&dev, (7usize,)).is_err());
    }
}
