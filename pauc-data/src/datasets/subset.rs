//! A part of another dataset.

use pauc_traits::dataset::{ImageSource, Place, Splits};
use pauc_traits::registry::kind;
use pauc_traits::{Configured, Dataset, Error, Image, ImageShape, Result, component};
use std::sync::Arc;

pub use pauc_traits::LabelFraction;

component! {
    /// A part of another dataset: some classes, or some images of each.
    ///
    /// The choice is deterministic: it takes the images whose index has the smallest hash within their class.
    /// A larger fraction therefore contains the smaller ones, and every run gets the same images. The data
    /// description of a run contains the fraction and the hash of the chosen indices. Without labels, all
    /// images count as one class. The statistics for normalization remain those of the whole dataset.
    pub struct Subset: Dataset {
        /// The dataset to take a part of.
        pub of: Configured<kind::Dataset>,
        /// The classes to keep, by name; empty: all. They keep their order and are renumbered.
        pub classes: Vec<String> = Vec::new(),
        /// The fraction of the training images: `All`, `Percent1`, `Percent10`, `PerClass(n)`, or
        /// `LongTail(factor: 100, seed: 0)`. In a long tail, class r of C has n/C·factor^(−r/(C − 1)) of the n images,
        /// rounded down, at least 1 and at most all; `seed` determines which classes are frequent. For a long tail over
        /// some classes, put a `Subset` of the classes into `of`.
        pub train: LabelFraction = LabelFraction::All,
        /// The fraction of the test images.
        pub test: LabelFraction = LabelFraction::All,
    }
}

/// Some images of another source.
pub struct Picked {
    source: Arc<dyn ImageSource>,
    ids: Vec<usize>,
    labels: Option<Vec<u32>>,
    other_labels: Option<Vec<u32>>,
}

impl ImageSource for Picked {
    fn len(&self) -> usize {
        self.ids.len()
    }

    fn shape(&self) -> Option<ImageShape> {
        self.source.shape()
    }

    fn image(&self, index: usize) -> Result<Image<'_>> {
        match self.ids.get(index) {
            Some(id) => self.source.image(*id),
            None => {
                Err(Error::config(format!("image {index} is out of range; the dataset has {}", self.len())))
            }
        }
    }

    fn name(&self, index: usize) -> String {
        self.ids.get(index).map_or_else(String::new, |id| self.source.name(*id))
    }

    fn path(&self, index: usize) -> Option<String> {
        self.source.path(*self.ids.get(index)?)
    }

    fn labels(&self) -> Option<&[u32]> {
        self.labels.as_deref()
    }

    fn fine_labels(&self) -> Option<&[u32]> {
        self.other_labels.as_deref()
    }
}

impl Picked {
    /// Selects the images with the indices `ids`, in this order.
    ///
    /// # Panics
    /// If `source` has labels and an index is out of range.
    pub fn new(source: Arc<dyn ImageSource>, ids: Vec<usize>) -> Self {
        let pick = |labels: Option<&[u32]>| labels.map(|l| ids.iter().map(|i| l[*i]).collect::<Vec<_>>());
        let (labels, other_labels) = (pick(source.labels()), pick(source.fine_labels()));
        Picked { source, ids, labels, other_labels }
    }

    /// Selects the given fraction of the images whose class `renumber` keeps.
    fn share(source: Arc<dyn ImageSource>, share: LabelFraction, renumber: Option<&[Option<u32>]>) -> Self {
        let class_is_kept = |i: &usize| match (renumber, source.labels()) {
            (Some(new), Some(labels)) => new[labels[*i] as usize].is_some(),
            _ => true,
        };
        let ids = share.choose(source.labels(), source.len()).into_iter().map(|i| i as usize);
        let mut picked = Picked::new(source.clone(), ids.filter(class_is_kept).collect());
        if let (Some(new), Some(labels)) = (renumber, &mut picked.labels) {
            labels.iter_mut().for_each(|l| *l = new[*l as usize].unwrap_or(0));
        }
        picked
    }

    fn digest(&self) -> String {
        let bytes: Vec<u8> = self.ids.iter().flat_map(|i| (*i as u32).to_le_bytes()).collect();
        blake3::hash(&bytes).to_hex()[..12].to_string()
    }
}

impl Dataset for Subset {
    fn open(&self, place: &Place) -> Result<Splits> {
        let whole = self.of.open(place)?;
        if let Some(name) = self.classes.iter().find(|c| !whole.classes.contains(c)) {
            let near = pauc_traits::registry::did_you_mean(name, whole.classes.iter().map(String::as_str));
            let near = near.map(|n| format!("; did you mean {n:?}?")).unwrap_or_default();
            let message = format!("Subset: unknown class {name:?} in {}{near}", whole.description);
            return Err(Error::config(message));
        }
        let (mut classes, mut renumber) = (whole.classes.clone(), None);
        if !self.classes.is_empty() {
            classes.retain(|c| self.classes.contains(c));
            let new = |c: &String| classes.iter().position(|k| k == c).map(|p| p as u32);
            renumber = Some(whole.classes.iter().map(new).collect::<Vec<_>>());
        }
        let train = Picked::share(whole.train, self.train, renumber.as_deref());
        if train.ids.is_empty() {
            return Err(Error::config("Subset: no training images are left"));
        }
        let test = whole.test.map(|t| Picked::share(t, self.test, renumber.as_deref()));
        let chosen =
            if self.classes.is_empty() { String::new() } else { format!(" in {} classes", classes.len()) };
        let description = format!(
            "{} of the training images{chosen} ({}, places {}), {} test images, of {}",
            self.train.name(),
            train.ids.len(),
            train.digest(),
            test.as_ref().map_or(0, |t| t.ids.len()),
            whole.description
        );
        let test = test.filter(|t| !t.ids.is_empty()).map(|t| Arc::new(t) as Arc<_>);
        let (statistics, skipped) = (whole.statistics, whole.skipped);
        Ok(Splits { train: Arc::new(train), test, classes, statistics, description, skipped })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pauc_traits::component_ron::options;

    fn open(fields: &str) -> Result<Splits> {
        let text = format!("Subset(of: Shapes(count: 400, size: 8, classes: 4), {fields})");
        options().from_str::<Subset>(&text).unwrap().open(&Place::at(""))
    }

    #[test]
    fn classes_are_selected_by_name_and_renumbered() {
        let whole = open("").unwrap();
        let part = open("classes: [\"triangle\", \"square\"], train: PerClass(5), test: Percent10").unwrap();
        assert_eq!(part.classes, ["square", "triangle"]);
        let labels = part.train.labels().unwrap();
        assert_eq!((labels.len(), labels.iter().filter(|l| **l == 1).count()), (10, 5));
        assert_eq!(part.test.as_ref().unwrap().len(), 2 * 2);
        // Every image occurs in the whole dataset, with its label.
        for (i, label) in labels.iter().enumerate() {
            let image = part.train.image(i).unwrap();
            let same = |j: &usize| whole.train.image(*j).unwrap() == image;
            let original = (0..400).find(same).unwrap();
            assert_eq!(whole.train.labels().unwrap()[original], label + 1);
        }
        assert!(
            part.description.starts_with("5 of each class of the training images in 2 classes (10, places ")
        );
        assert!(part.train.image(10).is_err());
        let tail = open("train: LongTail(factor: 10)").unwrap();
        assert!(tail.description.starts_with("a long tail (factor 10, seed 0) of the training images ("));
        let of = |class| tail.train.labels().unwrap().iter().filter(|l| **l == class).count();
        let mut sizes = [of(0), of(1), of(2), of(3)];
        sizes.sort_unstable();
        // ⌊100·10^(−r/3)⌋
        assert_eq!(sizes, [10, 21, 46, 100]);
        assert!(options().from_str::<Subset>("Subset(of: Shapes(), train: LongTail(factr: 10))").is_err());
        let text = open("classes: [\"sqare\"]").err().unwrap().to_string();
        assert!(text.contains("did you mean \"square\""), "{text}");
    }
}
