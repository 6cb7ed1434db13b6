//! Learning rates with an optional reference batch size.

use crate::ron_text::Spanned;
use crate::{Count, Positive};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A base learning rate: a plain number, or `Scaled(base: 0.3, per: 256)`, which is base·batch/per.
///
/// A learning rate is scaled only if the recipe says so. Source: Goyal et al. 2017; SimCLR and BYOL give
/// their rates per 256 images.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LearningRate {
    /// The same for every batch size.
    Plain(Positive),
    /// Proportional to the batch size.
    Scaled(Scaled),
}

/// A learning rate in proportion to the batch size.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scaled {
    /// The rate for a batch of `per` images.
    pub base: Positive,
    /// The batch size that `base` refers to.
    pub per: Count,
}

/// The form in recipes that replaces a number.
#[derive(Serialize, Deserialize)]
#[serde(rename = "LearningRate")]
enum Written {
    Scaled(Scaled),
}

impl LearningRate {
    /// Returns the rate for a batch of this number of images.
    pub fn at(&self, batch: usize) -> f64 {
        match self {
            LearningRate::Plain(rate) => rate.get(),
            LearningRate::Scaled(s) => s.base.get() * batch as f64 / s.per.get() as f64,
        }
    }
}

impl From<Positive> for LearningRate {
    fn from(rate: Positive) -> Self {
        LearningRate::Plain(rate)
    }
}

impl Serialize for LearningRate {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self {
            LearningRate::Plain(rate) => rate.serialize(s),
            LearningRate::Scaled(scaled) => Written::Scaled(*scaled).serialize(s),
        }
    }
}

impl<'de> Deserialize<'de> for LearningRate {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = Spanned::deserialize(d)?;
        if text.starts_with_identifier() {
            text.parse().map(|Written::Scaled(scaled)| LearningRate::Scaled(scaled))
        } else {
            text.parse().map(LearningRate::Plain)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::component_ron::options;

    #[test]
    fn a_scaled_rate_grows_with_the_batch_and_a_plain_one_does_not() {
        let read = |text: &str| options().from_str::<LearningRate>(text);
        assert_eq!(read("0.06").unwrap().at(1024), 0.06);
        let scaled = read("Scaled(base: 0.3, per: 256)").unwrap();
        assert_eq!((scaled.at(256), scaled.at(4096), scaled.at(64)), (0.3, 4.8, 0.075));
        let text = options().to_string(&scaled).unwrap();
        assert_eq!(text, "Scaled(base:0.3,per:256)");
        assert_eq!(read(&text).unwrap(), scaled);
        assert!(read("-0.1").unwrap_err().to_string().contains("greater than 0"));
        assert!(read("Scaled(base: 0.3)").unwrap_err().to_string().contains("per"));
        assert!(read("Scald(base: 0.3, per: 256)").is_err());
    }
}
