//! Temperatures: given, or learned with the network.

use crate::backend::{Backend, Scalar, Taped};
use crate::ops::{self, Matrix};
use crate::ron_text::Spanned;
use crate::schedule::{Clock, Scheduled};
use crate::term::{After, Init, TermParameter};
use crate::{Batch, Positive, Result};
use dfdx::prelude::*;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A temperature τ: a number, a [`crate::schedule::Schedule`], or `Learnable(init: 0.07, min: 0.01)`.
///
/// A learnable τ is e^ℓ, where ℓ is a parameter of the term. It stays positive, and its steps are relative.
/// After every step, a τ below `min` is raised to `min`. ℓ has no weight decay. Source: CLIP (Radford et al.
/// 2021), whose limit of 100 on 1/τ is `min: 0.01`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Temperature {
    /// A constant or a schedule.
    Given(Scheduled<Positive>),
    /// Learned with the network.
    Learnable(Learnable),
}

/// The start and the bound of a learnable temperature.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Learnable {
    /// τ before the first step.
    #[serde(default = "initial")]
    pub init: Positive,
    /// The smallest τ.
    #[serde(default = "smallest")]
    pub min: Positive,
}

fn initial() -> Positive {
    Positive::lit(0.07)
}

fn smallest() -> Positive {
    Positive::lit(0.01)
}

/// The form that [`Scheduled`] does not have.
#[derive(Serialize, Deserialize)]
enum Form {
    Learnable(Learnable),
}

/// The name of the parameter ℓ = ln τ within its term.
const NAME: &str = "ln_temperature";

impl Temperature {
    /// Returns the parameter of a learnable temperature, for [`crate::TermInfo::parameters`].
    pub fn parameters(&self) -> Vec<TermParameter> {
        let Temperature::Learnable(Learnable { init, min }) = self else { return Vec::new() };
        vec![TermParameter {
            name: NAME,
            rows: 1,
            cols: 1,
            init: Init::Constant(init.get().max(min.get()).ln()),
            after: After::AtLeast(min.get().ln()),
            frozen: None,
        }]
    }

    /// Returns τ of a given temperature at a step, and the initial τ of a learnable one.
    pub fn planned(&self, clock: &Clock) -> f64 {
        match self {
            Temperature::Given(t) => t.at(clock),
            Temperature::Learnable(l) => l.init.get().max(l.min.get()),
        }
    }

    /// Returns τ for a batch.
    ///
    /// # Errors
    /// If the batch lacks the parameter of a learnable temperature.
    pub fn of<E: Scalar, D: Backend<E>>(&self, batch: &Batch<E, D>) -> Result<f64> {
        match self {
            Temperature::Given(t) => Ok(t.at(batch.clock())),
            Temperature::Learnable(_) => Ok(batch.remembered(NAME)?.as_vec()[0].as_f64().exp()),
        }
    }

    /// Returns the leaf ℓ = ln τ of a learnable temperature, for terms that compute their own gradient.
    ///
    /// # Shapes
    /// (1, 1)
    ///
    /// # Errors
    /// If the batch lacks the parameter.
    pub fn leaf<E: Scalar, D: Backend<E>>(&self, batch: &Batch<E, D>) -> Result<Option<Matrix<E, D>>> {
        match self {
            Temperature::Given(_) => Ok(None),
            Temperature::Learnable(_) => batch.remembered(NAME).map(Some),
        }
    }

    /// Returns cosines/τ, with the gradient of a learnable τ.
    ///
    /// # Shapes
    /// (N, M) → (N, M)
    ///
    /// # Errors
    /// If the batch lacks the parameter of a learnable temperature.
    pub fn divide<E: Scalar, D: Backend<E>>(
        &self,
        batch: &Batch<E, D>,
        cosines: Taped<(usize, usize), E, D>,
    ) -> Result<Taped<(usize, usize), E, D>> {
        match self {
            Temperature::Given(t) => Ok(cosines / E::of(t.at(batch.clock()))),
            Temperature::Learnable(_) => {
                let shape = *cosines.shape();
                // 1/τ for each row as a product, then broadcast along the rows: no single step broadcasts one
                // number to a matrix.
                let inverse = (batch.parameter(NAME)? * E::of(-1.0)).exp();
                let ones = ops::constant(batch.device(), vec![E::one(); shape.0], (shape.0, 1));
                let column = ones.retaped::<OwnedTape<E, D>>().matmul(inverse).reshape_like(&(shape.0,));
                Ok(cosines * column.broadcast_like::<_, Axis<1>>(&shape))
            }
        }
    }
}

impl From<Positive> for Temperature {
    fn from(v: Positive) -> Self {
        Temperature::Given(v.into())
    }
}

impl Serialize for Temperature {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self {
            Temperature::Given(t) => t.serialize(s),
            Temperature::Learnable(l) => Form::Learnable(*l).serialize(s),
        }
    }
}

impl<'de> Deserialize<'de> for Temperature {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = Spanned::deserialize(d)?;
        if text.starts_with("Learnable") {
            return text.parse().map(|Form::Learnable(l)| Temperature::Learnable(l));
        }
        text.parse().map(Temperature::Given)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Inputs;
    use crate::component_ron::options;
    use pauc_testing::{assert_within, tolerance};

    fn parse(text: &str) -> Result<Temperature, String> {
        options().from_str(text).map_err(|e| e.to_string())
    }

    #[test]
    fn numbers_schedules_and_learnable_ones_are_read_and_written() {
        for text in ["0.2", "Linear(from:0.1,to:0.2,over:Epochs(5.0))", "Learnable(init:0.1,min:0.02)"] {
            let t = parse(text).unwrap();
            assert_eq!(options().to_string(&t).unwrap(), text);
        }
        let l = Learnable { init: Positive::lit(0.07), min: Positive::lit(0.01) };
        assert_eq!(parse("Learnable()"), Ok(Temperature::Learnable(l)));
        assert!(parse("Learnable(init: -1)").unwrap_err().contains("greater than 0, got -1"));
        assert!(parse("Learnable(start: 0.1)").unwrap_err().contains("start"));
        assert!(parse("-1").unwrap_err().contains("greater than 0"));
    }

    #[test]
    fn the_parameter_starts_and_stays_above_the_bound() {
        let p = &parse("Learnable(init: 0.001, min: 0.01)").unwrap().parameters()[0];
        assert_eq!(p.init, Init::Constant(0.01f64.ln()));
        let mut low = [-9.0f32];
        p.after.apply(&mut low, 1);
        // ln 0.01 is rounded once; the exponential turns this into a relative error, and is rounded again.
        assert_within!(low[0].exp(), 0.01, tolerance::f32(1, 0.01 * (-0.01f64.ln() + 2.0)));
        let mut rows = [3.0f32, 4.0, 0.0, 0.0];
        After::UnitRows.apply(&mut rows, 2);
        assert_eq!(rows, [0.6, 0.8, 0.0, 0.0]);
    }

    #[test]
    fn the_gradient_of_a_learnable_one_agrees_with_finite_differences() {
        let dev = Cpu::default();
        let learnable = parse("Learnable(init: 0.5)").unwrap();
        let at = |log: f64| {
            let matrix = |v: Vec<f64>, shape| dev.tensor_from_vec(v, shape);
            let inputs = Inputs {
                views: vec![Some(matrix(vec![0.3, -0.2, 0.9, 0.4, 0.1, 0.8], (2, 3)))],
                parameters: [(NAME.to_string(), matrix(vec![log], (1, 1)))].into(),
                ..Inputs::default()
            };
            let batch = Batch::new(&dev, inputs).unwrap();
            let value = ops::total(learnable.divide(&batch, batch.z(0).unwrap()).unwrap().exp());
            let number = ops::item(&value);
            assert_within!(learnable.of(&batch).unwrap(), log.exp(), tolerance::f64(1, 1.0));
            (number, batch.backward(value).unwrap().parameters[NAME][0])
        };
        let (_, found) = at(-0.7);
        let want = (at(-0.7 + 1e-5).0 - at(-0.7 - 1e-5).0) / 2e-5;
        // Six exponentials e^a with a = c/τ, |a| ≤ e^0.7 = s. Their third derivative with respect to ln τ is
        // −e^a(a + 3a² + a³). A unit row of three, a quotient, an exponential and a sum of six are 16
        // operations, whose error is multiplied by s.
        let s = 0.7f64.exp();
        let (largest, third) = (6.0 * s.exp(), 6.0 * s.exp() * (s + 3.0 * s * s + s * s * s));
        assert_within!(found, want, tolerance::central_difference(1e-5, third, 16, s * largest));
    }
}
