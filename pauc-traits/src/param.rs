//! Parameters: named buffers with gradients outside of the tape.

use crate::{Compute, Error, Result, Taped};
use dfdx::prelude::{PutTape, Shape, Tape as _};
use std::cell::{Ref, RefCell, RefMut};
use std::rc::Rc;

/// The role of a parameter. It decides whether weight decay and layer-wise scaling apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Weights of convolutions and linear layers.
    Weight,
    /// Biases.
    Bias,
    /// Scale and shift of normalization layers.
    Norm,
    /// Single numbers with a specific meaning, such as a temperature: they have no weight decay.
    Scalar,
    /// Running statistics and other state without a gradient.
    Statistic,
}

#[derive(Debug)]
struct Cell<B> {
    value: Rc<RefCell<B>>,
    grad: RefCell<B>,
    frozen: std::cell::Cell<bool>,
    lr_scale: std::cell::Cell<f64>,
    moments: RefCell<Option<Vec<B>>>,
}

/// A named parameter and its gradient, in the memory of the device. Clones share it.
///
/// Backward passes *add* to the gradient, and the optimizer reads it. The training step clears it before the
/// first backward pass.
#[derive(Debug)]
pub struct Param<D: Compute> {
    /// The name; for networks that torchvision has, torchvision's name.
    pub name: String,
    /// The shape in interchange order, such as (out, in, height, width) for a convolution.
    pub shape: Vec<usize>,
    /// Its role.
    pub role: Role,
    cell: Rc<Cell<D::Buffer>>,
}

impl<D: Compute> Clone for Param<D> {
    fn clone(&self) -> Self {
        Param { name: self.name.clone(), shape: self.shape.clone(), role: self.role, cell: self.cell.clone() }
    }
}

impl<D: Compute> Param<D> {
    /// Builds a parameter with the given values.
    ///
    /// # Shapes
    /// one value per element of `shape`, row-major
    ///
    /// # Errors
    /// If the number of values does not match the shape, or the device fails.
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
            value: Rc::new(RefCell::new(device.upload(values)?)),
            grad: RefCell::new(device.zero_buffer(grad)?),
            frozen: std::cell::Cell::new(false),
            lr_scale: std::cell::Cell::new(1.0),
            moments: RefCell::new(None),
        };
        Ok(Param { name, shape: shape.to_vec(), role, cell: Rc::new(cell) })
    }

    /// Returns a parameter that shares the values but has a gradient of its own, which starts at zero.
    ///
    /// # Errors
    /// If the device fails.
    pub fn with_own_gradient(&self, device: &D) -> Result<Self> {
        let cell = Cell {
            value: self.cell.value.clone(),
            grad: RefCell::new(device.zero_buffer(device.buffer_len(&self.grad()))?),
            frozen: self.cell.frozen.clone(),
            lr_scale: self.cell.lr_scale.clone(),
            moments: RefCell::new(None),
        };
        Ok(Param { cell: Rc::new(cell), ..self.clone() })
    }

    /// Returns an independent parameter with the same values.
    ///
    /// # Errors
    /// If the device fails.
    pub fn deep_clone(&self, device: &D) -> Result<Self> {
        Param::new(device, self.name.clone(), &self.shape, self.role, &device.download(&self.value())?)
    }

    /// Returns the same parameter under a name with a prefix, such as `projector.`.
    pub fn prefixed(&self, prefix: &str) -> Self {
        Param { name: format!("{prefix}{}", self.name), ..self.clone() }
    }

    /// Returns the number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Returns whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the values.
    pub fn value(&self) -> Ref<'_, D::Buffer> {
        self.cell.value.borrow()
    }

    /// Returns the values for modification.
    pub fn value_mut(&self) -> RefMut<'_, D::Buffer> {
        self.cell.value.borrow_mut()
    }

    /// Returns the gradient accumulated since it was last cleared; empty for a statistic.
    pub fn grad(&self) -> Ref<'_, D::Buffer> {
        self.cell.grad.borrow()
    }

    /// Returns the gradient, for adding to it.
    pub fn grad_mut(&self) -> RefMut<'_, D::Buffer> {
        self.cell.grad.borrow_mut()
    }

    /// Returns whether the parameter is frozen: optimizers skip it.
    pub fn is_frozen(&self) -> bool {
        self.cell.frozen.get()
    }

    /// Freezes or unfreezes the parameter.
    pub fn set_frozen(&self, frozen: bool) {
        self.cell.frozen.set(frozen);
    }

    /// Returns the factor on the learning rate of this parameter.
    pub fn lr_scale(&self) -> f64 {
        self.cell.lr_scale.get()
    }

    /// Sets the factor on the learning rate.
    pub fn set_lr_scale(&self, scale: f64) {
        self.cell.lr_scale.set(scale);
    }

    /// Begins to record the batch moments toward which passes move this running statistic.
    pub fn record_moments(&self) {
        self.cell.moments.replace(Some(Vec::new()));
    }

    /// Returns whether moments are recorded.
    pub fn records_moments(&self) -> bool {
        self.cell.moments.borrow().is_some()
    }

    /// Adds the moments of a batch to the record, if there is one.
    pub fn note_moments(&self, moments: impl FnOnce() -> D::Buffer) {
        if let Some(record) = &mut *self.cell.moments.borrow_mut() {
            record.push(moments());
        }
    }

    /// Ends the record and returns it: one value per element for each pass, in the order of the passes.
    ///
    /// # Errors
    /// If the device fails.
    pub fn take_moments(&self, device: &D) -> Result<Vec<f32>> {
        let mut all = Vec::new();
        for moments in self.cell.moments.take().unwrap_or_default() {
            all.extend(device.download(&moments)?);
        }
        Ok(all)
    }

    /// Returns the parameter as a leaf tensor on a tape. The backward pass adds the tensor's gradient to that
    /// of this parameter. For layers of plain dfdx operations.
    ///
    /// # Shapes
    /// `shape` has as many elements as the parameter
    ///
    /// # Errors
    /// If the shape has a different number of elements, or the device fails.
    pub fn traced<S: Shape>(&self, device: &D, shape: S) -> Result<Taped<S, f32, D>> {
        if shape.num_elements() != self.len() {
            return Err(Error::shape(
                self.name.as_str(),
                format!("a parameter of shape {:?} cannot be viewed as {shape:?}", self.shape),
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
    fn a_parameter_with_a_gradient_of_its_own_shares_the_values() {
        let dev = Cpu::default();
        let p = Param::new(&dev, "w", &[2], Role::Weight, &[1., 2.]).unwrap();
        p.grad_mut().fill(3.0);
        let other = p.with_own_gradient(&dev).unwrap();
        assert_eq!(*other.grad(), [0.0; 2]);
        other.grad_mut().fill(5.0);
        p.value_mut()[1] = 7.0;
        assert_eq!((&*other.value(), &*p.grad()), (&vec![1.0, 7.0], &vec![3.0; 2]));
    }

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
