//! A ConvNeXt on the CPU: an [`Encoder`] whose pass is one operation on dfdx's tape.

use super::parameters::Parameters;
use super::plan::Plan;
use super::workspace::Workspace;
use crate::drop_path;
use crate::encoders::passes::Passes;
use dfdx::prelude::{Cpu, HasShape};
use pauc_kernels::simd::Simd;
use pauc_traits::encoder::{Draws, Images, Layer, LayerDepths};
use pauc_traits::{Encoder, Error, ImageShape, Param, Pass, Result, Taped};
use std::rc::Rc;

/// A ConvNeXt on the CPU.
pub(crate) struct Network {
    device: Cpu,
    plan: Rc<Plan>,
    parameters: Rc<Parameters<Cpu>>,
    simd: Simd,
    passes: Passes<Workspace>,
}

impl Network {
    /// Creates a network with initial weights from the random streams of `seed`, and with `scale` as the γ of its
    /// blocks.
    pub(crate) fn new(device: &Cpu, plan: Plan, scale: f64, seed: u64) -> Result<Self> {
        let simd = Simd::detect().map_err(|e| Error::config(e.to_string()))?;
        let parameters = Parameters::new(device, &plan, scale, seed)?;
        Ok(Self::with(device, plan, Rc::new(parameters), simd))
    }

    fn with(device: &Cpu, plan: Plan, parameters: Rc<Parameters<Cpu>>, simd: Simd) -> Self {
        Network {
            device: device.clone(),
            passes: Passes::new(device, |keep| Workspace::new(&plan, simd, keep)),
            plan: Rc::new(plan),
            parameters,
            simd,
        }
    }

    /// Runs a pass, in which images skip what blocks add if there are draws.
    fn pass(
        &mut self,
        images: Images<Cpu>,
        pass: Pass,
        draws: Option<&Draws>,
    ) -> Result<Taped<(usize, usize), f32, Cpu>> {
        let batch = self.plan.batch_of(*images.shape())?;
        let draws = draws.filter(|_| self.plan.drop_path > 0.0);
        let factors = draws.map(|draws| drop_path::factors(draws, batch, &self.plan.rates())).transpose()?;
        let (plan, parameters) = (self.plan.clone(), self.parameters.clone());
        self.passes.run(
            &images,
            pass,
            self.plan.last().width,
            |work, images| work.forward(&self.plan, &self.parameters, images, factors),
            move |work, d_features| work.backward(&plan, &parameters, d_features),
        )
    }
}

impl Encoder<Cpu> for Network {
    fn feature_dim(&self) -> usize {
        self.plan.last().width
    }

    fn forward(&mut self, images: Images<Cpu>, pass: Pass) -> Result<Taped<(usize, usize), f32, Cpu>> {
        self.pass(images, pass, None)
    }

    fn forward_drawn(
        &mut self,
        images: Images<Cpu>,
        pass: Pass,
        draws: &Draws,
    ) -> Result<Taped<(usize, usize), f32, Cpu>> {
        self.pass(images, pass, Some(draws))
    }

    fn depths(&self) -> Option<LayerDepths> {
        Some(self.parameters.depths())
    }

    fn parameters(&self) -> Vec<Param<Cpu>> {
        self.parameters.all()
    }

    fn statistics(&self) -> Vec<Param<Cpu>> {
        Vec::new()
    }

    fn duplicate(&self) -> Result<Box<dyn Encoder<Cpu>>> {
        let parameters = Rc::new(self.parameters.duplicate(&self.device)?);
        Ok(Box::new(Self::with(&self.device, (*self.plan).clone(), parameters, self.simd)))
    }

    fn resized(&self, input: ImageShape) -> Result<Box<dyn Encoder<Cpu>>> {
        let plan = self.plan.resized(input)?;
        Ok(Box::new(Self::with(&self.device, plan, self.parameters.clone(), self.simd)))
    }

    fn layers(&self) -> Vec<Layer> {
        self.plan.layers()
    }
}
