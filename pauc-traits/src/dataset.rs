//! Datasets and augmentations.

use crate::registry::Component;
use crate::rng::Stream;
use crate::{Image, ImageShape, Result};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A registered dataset: a source of images.
pub trait Dataset: Component {
    /// Opens the dataset: reads or indexes the data that must be in memory, and checks that it is complete.
    ///
    /// # Errors
    /// If a file or folder is missing, damaged or in another format. The error names it and the remedy.
    fn open(&self, place: &Place) -> Result<Splits>;

    /// Lists the dataset without reading its images, as far as that is possible; by default, opens it. In listed splits,
    /// unreadable images are not left out, images are not kept in memory, and shape and statistics are not known.
    ///
    /// # Errors
    /// As [`Dataset::open`], except for images that cannot be read.
    fn list(&self, place: &Place) -> Result<Splits> {
        self.open(place)
    }

    /// Returns the published sizes of the dataset, for checking a recipe without its files; by default
    /// nothing.
    fn published(&self) -> Option<Published> {
        None
    }
}

/// The sizes of a dataset as its authors published them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    /// The number of training images.
    pub train: usize,
    /// The number of test images.
    pub test: usize,
    /// The shape of all images; `None` if they differ.
    pub shape: Option<ImageShape>,
    /// The number of channels.
    pub channels: usize,
    /// The number of classes.
    pub classes: usize,
    /// Whether the training images have labels.
    pub labeled: bool,
}

impl Published {
    /// Returns the sizes of `train` and `test` labeled images of one shape.
    pub fn new(train: usize, test: usize, shape: ImageShape, classes: usize) -> Self {
        Published { train, test, shape: Some(shape), channels: shape.channels, classes, labeled: true }
    }

    /// Returns splits of these sizes whose images cannot be read.
    pub fn splits(self, name: &str) -> Splits {
        let images = |len, labeled: bool| {
            let labels = labeled.then(|| (0..len).map(|i| (i % self.classes.max(1)) as u32).collect());
            Arc::new(Absent { len, shape: self.shape, labels }) as Arc<dyn ImageSource>
        };
        Splits {
            train: images(self.train, self.labeled),
            test: Some(images(self.test, true)),
            classes: (0..self.classes).map(|c| c.to_string()).collect(),
            statistics: vec![(0.5, 0.25); self.channels],
            description: format!("{name}, with its published sizes"),
            skipped: Vec::new(),
        }
    }
}

/// Images of which only number, shape and labels are known.
struct Absent {
    len: usize,
    shape: Option<ImageShape>,
    labels: Option<Vec<u32>>,
}

impl ImageSource for Absent {
    fn len(&self) -> usize {
        self.len
    }
    fn shape(&self) -> Option<ImageShape> {
        self.shape
    }
    fn image(&self, _: usize) -> Result<Image<'_>> {
        Err(crate::Error::config(
            "the images are not available: only the published sizes of the dataset are known",
        ))
    }
    fn labels(&self) -> Option<&[u32]> {
        self.labels.as_deref()
    }
}

/// Where a recipe is opened: the folder where its relative paths start, and the memory that it may take.
#[derive(Clone, Debug)]
pub struct Place {
    /// The base of relative paths: the working directory.
    pub base: PathBuf,
    /// The memory in bytes; `None`: that of the machine.
    pub memory: Option<u64>,
}

impl Place {
    /// Returns a folder, with all of the machine's memory.
    pub fn at(base: impl Into<PathBuf>) -> Self {
        Place { base: base.into(), memory: None }
    }

    /// Makes a path of a recipe absolute.
    pub fn resolve(&self, path: impl AsRef<Path>) -> PathBuf {
        self.base.join(path)
    }
}

/// An opened dataset.
#[derive(Clone)]
pub struct Splits {
    /// The training images.
    pub train: Arc<dyn ImageSource>,
    /// The test images, if the dataset has them.
    pub test: Option<Arc<dyn ImageSource>>,
    /// The names of the classes; the index is the label. Empty without labels.
    pub classes: Vec<String>,
    /// The mean and standard deviation of each channel over the training pixels, in 0..1, for normalization.
    pub statistics: Vec<(f32, f32)>,
    /// A description of the data in one line, for reports.
    pub description: String,
    /// Images that were left out because they could not be read.
    pub skipped: Vec<Skipped>,
}

/// An image that a dataset left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// Its path.
    pub path: String,
    /// Why it cannot be read.
    pub reason: String,
}

/// Images by index. Threads may read them concurrently.
pub trait ImageSource: Send + Sync {
    /// Returns the number of images.
    fn len(&self) -> usize;

    /// Returns whether there are no images.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the shape of all images, or `None` if they differ.
    fn shape(&self) -> Option<ImageShape>;

    /// Returns image `index`.
    ///
    /// # Errors
    /// If the image cannot be read or decoded.
    fn image(&self, index: usize) -> Result<Image<'_>>;

    /// Returns the name of image `index` for messages: its path, if it has one.
    fn name(&self, index: usize) -> String {
        format!("image {index}")
    }

    /// Returns the path of image `index` within the dataset, with `/` between folders; by default `None`, for
    /// images that are not files. It does not depend on where the dataset lies.
    fn path(&self, index: usize) -> Option<String> {
        let _ = index;
        None
    }

    /// Returns the class labels in index order, if there are any.
    ///
    /// # Shapes
    /// one label per image
    fn labels(&self) -> Option<&[u32]>;

    /// Returns labels of another granularity, finer or coarser than [`ImageSource::labels`], if there are
    /// any.
    ///
    /// # Shapes
    /// one label per image
    fn fine_labels(&self) -> Option<&[u32]> {
        None
    }
}

impl std::fmt::Debug for dyn ImageSource + '_ {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} images", self.len())
    }
}

/// A registered augmentation: one step of a view.
pub trait Augmentation: Component {
    /// Changes the image, with random numbers from the view's own stream. The pixels may be borrowed from the
    /// dataset, so that a step that produces new ones, such as a crop, copies nothing first.
    fn apply<'a>(&self, image: Image<'a>, rng: &mut Stream) -> Image<'a>;

    /// Returns the shape of the result for an input of shape `input`; `None` if the shape of the input is
    /// unknown and the step keeps its size.
    ///
    /// # Errors
    /// If the step cannot work on such images.
    fn output(&self, input: Option<ImageShape>) -> Result<Option<ImageShape>>;

    /// Returns the deterministic step that replaces this one in the evaluation view; by default there is
    /// none.
    fn evaluation(&self) -> Option<Box<dyn Augmentation>> {
        None
    }

    /// Returns whether the step only crops or flips the image, as is usual for training classifiers.
    fn is_crop_or_flip(&self) -> bool {
        false
    }

    /// Returns the steps of a preset, which is a list of steps under one name.
    fn steps(&self) -> Option<Vec<Arc<dyn Augmentation>>> {
        None
    }

    /// Returns the mean and deviation of each channel, in 0..1, that replace the dataset's for normalization.
    fn normalization(&self) -> Option<Vec<(f32, f32)>> {
        None
    }
}
