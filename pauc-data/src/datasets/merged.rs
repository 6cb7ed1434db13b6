//! Another dataset with coarser labels.

use pauc_traits::dataset::{ImageSource, Place, Splits};
use pauc_traits::registry::{did_you_mean, kind};
use pauc_traits::{Configured, Dataset, Error, Image, ImageShape, Result, component};
use std::collections::BTreeMap;
use std::sync::Arc;

component! {
    /// Another dataset with merged classes, for a study of coarse labels.
    ///
    /// The images and their order remain. The classes of `of` remain as the labels of finer granularity. Every class
    /// must be in exactly one merged class.
    pub struct Merged: Dataset {
        /// The dataset whose classes to merge.
        pub of: Configured<kind::Dataset>,
        /// The merged classes, such as `[(name: "vehicle", of: ["automobile", "truck"]), …]`.
        pub classes: Vec<MergedClass>,
    }
}

component! {
    /// A merged class.
    pub struct MergedClass {
        /// Its name.
        pub name: String,
        /// The names of its classes in the dataset.
        pub of: Vec<String>,
    }
}

/// Images with coarser labels.
struct Relabeled {
    source: Arc<dyn ImageSource>,
    labels: Option<Vec<u32>>,
}

/// Replaces each label by `merged[label]`.
fn relabeled(source: &Arc<dyn ImageSource>, merged: &[u32]) -> Arc<dyn ImageSource> {
    let labels = source.labels().map(|all| all.iter().map(|l| merged[*l as usize]).collect());
    Arc::new(Relabeled { source: source.clone(), labels })
}

impl ImageSource for Relabeled {
    fn len(&self) -> usize {
        self.source.len()
    }

    fn shape(&self) -> Option<ImageShape> {
        self.source.shape()
    }

    fn image(&self, index: usize) -> Result<Image<'_>> {
        self.source.image(index)
    }

    fn name(&self, index: usize) -> String {
        self.source.name(index)
    }

    fn path(&self, index: usize) -> Option<String> {
        self.source.path(index)
    }

    fn labels(&self) -> Option<&[u32]> {
        self.labels.as_deref()
    }

    fn fine_labels(&self) -> Option<&[u32]> {
        self.source.labels()
    }
}

impl Merged {
    /// Returns the merged class of each class.
    fn merged(&self, classes: &[String]) -> Result<Vec<u32>> {
        let mut merged = BTreeMap::new();
        for (i, class) in self.classes.iter().enumerate() {
            if self.classes[..i].iter().any(|other| other.name == class.name) {
                return Err(refused(format!("two merged classes have the name {:?}", class.name)));
            }
            for name in &class.of {
                if !classes.contains(name) {
                    let near = did_you_mean(name, classes.iter().map(String::as_str));
                    let near = near.map(|near| format!("; did you mean {near:?}?")).unwrap_or_default();
                    return Err(refused(format!("unknown class {name:?} in {:?}{near}", class.name)));
                }
                if merged.insert(name, i as u32).is_some() {
                    return Err(refused(format!(
                        "the class {name:?} is in two merged classes, or twice in one"
                    )));
                }
            }
        }
        let of = |name| {
            let missing = || refused(format!("the class {name:?} is in no merged class; add it to one"));
            merged.get(name).copied().ok_or_else(missing)
        };
        classes.iter().map(of).collect()
    }
}

fn refused(message: String) -> Error {
    Error::config(format!("Merged: {message}"))
}

impl Dataset for Merged {
    fn open(&self, place: &Place) -> Result<Splits> {
        let whole = self.of.open(place)?;
        if whole.train.labels().is_none() {
            return Err(refused(format!("{} has no labels", whole.description)));
        }
        let merged = self.merged(&whole.classes)?;
        let classes: Vec<String> = self.classes.iter().map(|class| class.name.clone()).collect();
        let groups: Vec<String> =
            self.classes.iter().map(|class| format!("{}: {}", class.name, class.of.join(", "))).collect();
        let description = format!("{}, with merged classes ({})", whole.description, groups.join("; "));
        let (train, test) = (relabeled(&whole.train, &merged), whole.test.as_ref());
        Ok(Splits { train, test: test.map(|test| relabeled(test, &merged)), classes, description, ..whole })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pauc_traits::component_ron::options;

    fn open(classes: &str) -> Result<Splits> {
        let text = format!("Merged(of: Shapes(count: 40, size: 8, classes: 4), classes: [{classes}])");
        options().from_str::<Merged>(&text).unwrap().open(&Place::at(""))
    }

    #[test]
    fn labels_are_merged_and_images_remain() {
        let plain = options().from_str::<crate::datasets::Shapes>("Shapes(count: 40, size: 8, classes: 4)");
        let plain = plain.unwrap().open(&Place::at("")).unwrap();
        let [a, b, c, d] = [0, 1, 2, 3].map(|i| plain.classes[i].clone());
        let groups = format!("(name: \"two\", of: [{a:?}, {d:?}]), (name: \"other\", of: [{b:?}, {c:?}])");
        let splits = open(&groups).unwrap();
        assert_eq!(splits.classes, ["two", "other"]);
        for (old, new) in
            [(&plain.train, &splits.train), (plain.test.as_ref().unwrap(), splits.test.as_ref().unwrap())]
        {
            assert_eq!(new.len(), old.len());
            assert_eq!(new.fine_labels(), old.labels());
            let want: Vec<u32> = old.labels().unwrap().iter().map(|l| [0, 1, 1, 0][*l as usize]).collect();
            assert_eq!(new.labels().unwrap(), want);
            assert_eq!(new.image(7).unwrap(), old.image(7).unwrap());
        }
        assert_eq!(splits.statistics, plain.statistics);
        assert!(splits.description.contains(&format!("two: {a}, {d}; other")), "{}", splits.description);
    }

    #[test]
    fn every_class_must_be_in_one_merged_class() {
        let text = |groups: &str| open(groups).err().unwrap().to_string();
        assert!(text("(name: \"a\", of: [\"square\"])").contains("is in no merged class"));
        let unknown = text("(name: \"a\", of: [\"sqare\"])");
        assert!(unknown.contains("did you mean \"square\"?"), "{unknown}");
        assert!(text("(name: \"a\", of: [\"square\", \"square\"])").contains("twice in one"));
        assert!(text("(name: \"a\", of: []), (name: \"a\", of: [])").contains("two merged classes"));
    }
}
