//! The dataset of a suggested recipe.

use crate::recipe_text;
use pauc_data::survey::{Survey, SurveyOptions, survey};
use pauc_traits::dataset::{Place, Splits};
use pauc_traits::registry::{Field, Kind, kind};
use pauc_traits::{Configured, Error, Result};

/// The fewest images that a recipe is suggested for.
pub const FEWEST: usize = 20;

/// A dataset, and which of its settings a recipe may choose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Data {
    /// The dataset as a recipe writes it.
    pub text: String,
    /// The fields that it has and the text leaves out.
    free: Vec<&'static str>,
}

/// A dataset with what was found in it.
#[derive(Clone)]
pub struct Surveyed {
    /// What a recipe for it has to know.
    pub survey: Survey,
    /// Its images, listed.
    pub splits: Splits,
}

impl Data {
    /// Reads a dataset as a recipe writes it.
    ///
    /// # Errors
    /// If it is not one.
    pub fn parse(text: &str) -> Result<Self, ron::error::SpannedError> {
        let dataset = Configured::<kind::Dataset>::parse(text)?;
        let fields: &[Field] = <kind::Dataset as Kind>::entries()
            .iter()
            .find(|e| e.name == dataset.name())
            .map_or(&[], |e| e.fields);
        let written = recipe_text::parse(text);
        let is_free =
            |name: &str| written.as_ref().is_some_and(|root| recipe_text::find(root, name).is_none());
        let free = fields.iter().map(|f| f.name).filter(|name| is_free(name)).collect();
        Ok(Data { text: text.trim().into(), free })
    }

    /// Returns whether the recipe may choose this setting.
    pub fn may_set(&self, field: &str) -> bool {
        self.free.contains(&field)
    }

    /// Returns the dataset with some settings.
    ///
    /// # Errors
    /// If a value is not one.
    pub fn with(&self, settings: &[(&str, String)]) -> Result<String> {
        let mut text = self.text.clone();
        for (field, value) in settings.iter().filter(|(field, _)| self.may_set(field)) {
            text = match text.strip_suffix(')').filter(|_| !text.contains("//")) {
                Some(open) => {
                    let fields = open.trim_end().trim_end_matches(',');
                    let comma = if fields.ends_with('(') { "" } else { ", " };
                    format!("{fields}{comma}{field}: {value})")
                }
                // A comment could swallow what is appended.
                None => recipe_text::set(&text, &format!("{field}={value}"))
                    .map_err(|e| Error::config(format!("{field}: {e}")))?,
            };
        }
        Ok(text)
    }

    /// Lists the images, with nothing held out for testing, and reads a sample of them.
    ///
    /// # Errors
    /// If the dataset cannot be listed, no image can be read, or there are too few.
    pub fn survey(&self, place: &Place, options: SurveyOptions) -> Result<Surveyed> {
        let unusable = |message: String| Error::damaged(&self.text, message);
        let text = self.with(&[("test_fraction", "0".into())])?;
        let dataset = Configured::<kind::Dataset>::parse(&text).map_err(|e| Error::config(e.to_string()))?;
        let splits = dataset.list(place)?;
        let survey = survey(&splits, options);
        if let Some(first) = survey.unreadable.first().filter(|_| survey.unreadable.len() == survey.read) {
            return Err(unusable(format!(
                "none of the {} images that were tried can be read; first: {}",
                survey.read, first.reason
            )));
        }
        let usable = survey.train - survey.unreadable.len().min(survey.train);
        if usable < FEWEST {
            return Err(unusable(format!(
                "{usable} readable training images are too few to learn from; add more, at least {FEWEST} in all"
            )));
        }
        Ok(Surveyed { survey, splits })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_free_settings_are_added() {
        let data = Data::parse("ImageFolder(root: \"a\", test_fraction: 0.3)").unwrap();
        assert!(data.may_set("on_error") && !data.may_set("test_fraction") && !data.may_set("images"));
        let settings =
            [("test_fraction", "0".to_string()), ("on_error", "Skip(max: 2)".into()), ("no", "1".into())];
        let text = data.with(&settings).unwrap();
        let set = Configured::<kind::Dataset>::parse(&text).unwrap();
        let written = pauc_traits::component_ron::options().to_string(&set).unwrap();
        assert!(written.contains("test_fraction:0.3") && written.contains("Skip(max:2)"), "{written}");
        let mnist = Data::parse("FashionMini()").unwrap();
        assert_eq!(mnist.with(&settings).unwrap(), "FashionMini()");
        assert!(Data::parse("Nothing()").is_err());
    }
}
