//! The workspaces of a network on the CPU, and its passes as single operations on dfdx's tape.

use dfdx::prelude::{Cpu, HasShape, PutTape, Tape as _, TensorFromVec};
use pauc_kernels::threads::awake;
use pauc_traits::encoder::Images;
use pauc_traits::{Error, Pass, Result, Taped};
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// The workspaces `W` of a network, and what its passes share.
pub(super) struct Passes<W> {
    device: Cpu,
    /// For passes with a backward pass, shared with their tape.
    training: Rc<RefCell<W>>,
    /// For all other passes, so that they do not disturb an outstanding training pass.
    inference: W,
    outstanding: Rc<Cell<bool>>,
    images: Vec<f32>,
}

/// Marks a training pass as outstanding until its backward pass has run or its tape is dropped.
pub(crate) struct Outstanding(Rc<Cell<bool>>);

impl Outstanding {
    /// Marks a pass as outstanding.
    ///
    /// # Errors
    /// If another pass is outstanding.
    pub fn begin(outstanding: &Rc<Cell<bool>>) -> Result<Self> {
        if outstanding.replace(true) {
            return Err(Error::config(
                "a training pass of this encoder is still waiting for its backward pass: run that first, or drop its tape",
            ));
        }
        Ok(Outstanding(outstanding.clone()))
    }
}

impl Drop for Outstanding {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

impl<W: 'static> Passes<W> {
    /// Creates the workspaces. `workspace` is told whether one keeps values for a backward pass.
    pub fn new(device: &Cpu, workspace: impl Fn(bool) -> W) -> Self {
        Passes {
            device: device.clone(),
            training: Rc::new(RefCell::new(workspace(true))),
            inference: workspace(false),
            outstanding: Rc::default(),
            images: Vec::new(),
        }
    }

    /// Marks a pass as outstanding.
    ///
    /// # Errors
    /// If another pass is outstanding.
    pub fn begin(&self) -> Result<Outstanding> {
        Outstanding::begin(&self.outstanding)
    }

    /// Returns the pixels of images.
    ///
    /// # Shapes
    /// images (B, H, W, C) → B·H·W·C
    pub fn pixels(&mut self, images: &Images<Cpu>) -> &[f32] {
        let (batch, height, width, channels) = *images.shape();
        self.images.resize(batch * height * width * channels, 0.0);
        images.copy_into(&mut self.images);
        &self.images
    }

    /// Runs a pass: `forward` computes the features of the images in a workspace, and `backward` accumulates gradients,
    /// given that of the features.
    ///
    /// # Shapes
    /// images (B, H, W, C) → (B, width)
    ///
    /// # Errors
    /// Those of `forward`, or if a training pass is outstanding.
    pub fn run(
        &mut self,
        images: &Images<Cpu>,
        pass: Pass,
        width: usize,
        forward: impl FnOnce(&mut W, (&[f32], usize)) -> Result<Vec<f32>>,
        backward: impl FnOnce(&mut W, &[f32]) + 'static,
    ) -> Result<Taped<(usize, usize), f32, Cpu>> {
        self.pixels(images);
        let batch = images.shape().0;
        let source = (&self.images[..], batch);
        let tensor =
            |features| self.device.try_tensor_from_vec(features, (batch, width)).map_err(Error::device);
        if pass != Pass::Train {
            let features = awake(|| forward(&mut self.inference, source))?;
            return Ok(tensor(features)?.put_tape(Default::default()));
        }
        let guard = self.begin()?;
        let features = tensor(awake(|| forward(&mut self.training.borrow_mut(), source))?)?;
        let (ghost, workspace) = (features.clone(), self.training.clone());
        let mut tape = pauc_traits::Tape::default();
        tape.add_backward_op(move |gradients| {
            let _guard = guard;
            let d_features = gradients.get_or_alloc_mut(&ghost)?;
            awake(|| backward(&mut workspace.borrow_mut(), d_features));
            Ok(())
        });
        Ok(features.put_tape(tape))
    }
}
