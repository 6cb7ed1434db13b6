//! ImageNet and its subsets.

use super::image_folder::scan;
use super::pictures::{Listed, picture_set};
use pauc_traits::dataset::{Place, Published, Splits};
use pauc_traits::{Dataset, Error, Result};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The classes of ImageNet to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImageNetSubset {
    /// All class folders.
    All,
    /// The 100 classes of Tian, Krishnan & Isola, *Contrastive multiview coding*, 2019.
    ImageNet100,
}

picture_set! {
    /// ImageNet as distributed: folders `train` and `val`, with one folder of JPEG files per class.
    ///
    /// The folder of a class is named by its WordNet id, such as `n01440764`.
    ///
    /// Labels are the positions of the ids in sorted order, among the classes of the subset. `subset:
    /// ImageNet100` selects the 100 classes of contrastive multiview coding. The data description of a run
    /// contains its name and the hash of its class list. Source: Russakovsky et al., *ImageNet large scale
    /// visual recognition challenge*, 2015.
    pub struct ImageNet {
        /// The folder that holds `train` and `val`.
        pub root: PathBuf,
        /// `All` or `ImageNet100`.
        pub subset: ImageNetSubset = ImageNetSubset::All,
    }
}

/// The list, one id per line, in its authors' order. Copyright 2020 Yonglong Tian, BSD 2-clause license.
static IMAGENET100: &str = include_str!("../../data/imagenet100.txt");

/// Returns the ids of ImageNet100, sorted.
pub fn imagenet100() -> Vec<&'static str> {
    let mut ids: Vec<_> = IMAGENET100.split_whitespace().collect();
    ids.sort_unstable();
    ids
}

/// Returns the first digits of the BLAKE3 hash of some ids, one per line.
fn digest<S: AsRef<str>>(ids: &[S]) -> String {
    let text: String = ids.iter().map(|i| format!("{}\n", i.as_ref())).collect();
    blake3::hash(text.as_bytes()).to_hex()[..12].to_string()
}

fn is_id(name: &str) -> bool {
    name.strip_prefix('n').is_some_and(|d| d.len() == 8 && d.bytes().all(|b| b.is_ascii_digit()))
}

impl Dataset for ImageNet {
    fn open(&self, place: &Place) -> Result<Splits> {
        self.listed(place)?.open(&self.reading(), place)
    }

    fn list(&self, place: &Place) -> Result<Splits> {
        Ok(self.listed(place)?.list(&self.reading()))
    }

    fn published(&self) -> Option<Published> {
        let (train, test, classes) = match self.subset {
            ImageNetSubset::All => (1_281_167, 50_000, 1000),
            ImageNetSubset::ImageNet100 => (126_689, 5_000, 100),
        };
        Some(Published { train, test, shape: None, channels: 3, classes, labeled: true })
    }
}

impl ImageNet {
    fn listed(&self, place: &Place) -> Result<Listed> {
        let root = place.resolve(&self.root);
        for part in ["train", "val"] {
            if !root.join(part).is_dir() {
                let remedy = "put ImageNet's class folders there".to_string();
                return Err(Error::NotFound { path: root.join(part), remedy });
            }
        }
        let list = imagenet100();
        let (only, name) = match self.subset {
            ImageNetSubset::All => (None, "ImageNet"),
            ImageNetSubset::ImageNet100 => {
                (Some(&*list), "ImageNet100 (classes of contrastive multiview coding")
            }
        };
        let pictures = scan::scan(&root, 0.0, only)?;
        if let Some(other) = pictures.classes.iter().find(|c| !is_id(c)) {
            let message = "is not an ImageNet class folder; expected a name such as n01440764; read other folders with ImageFolder";
            return Err(Error::damaged(root.join("train").join(other), message));
        }
        if pictures.classes.is_empty() {
            let message = "has images but no class folders; move ImageNet's images into one folder per class";
            return Err(Error::damaged(&root, message));
        }
        let close = if only.is_some() { ", list " } else { " (classes " };
        let title = format!("{name}{close}{})", digest(&pictures.classes));
        Ok(Listed { title, origin: root, pictures })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pauc_traits::component_ron::options;
    use std::path::Path;

    fn picture(path: &Path, value: u8) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let picture = image::RgbImage::from_pixel(4, 4, image::Rgb([value; 3]));
        picture.save_with_format(path, image::ImageFormat::Png).unwrap();
    }

    fn open(root: &Path, fields: &str) -> Result<Splits> {
        let set: ImageNet = options().from_str(&format!("ImageNet(root: \".\", {fields})")).unwrap();
        set.open(&Place::at(root))
    }

    #[test]
    fn the_list_has_a_hundred_ids() {
        let ids = imagenet100();
        assert_eq!((ids.len(), ids[0], ids[99]), (100, "n01558993", "n13040303"));
        assert!(ids.windows(2).all(|w| w[0] < w[1]) && ids.iter().all(|i| is_id(i)));
    }

    #[test]
    fn the_subset_selects_its_classes_and_describes_them() {
        let folder = tempfile::tempdir().unwrap();
        for (i, id) in imagenet100().iter().enumerate().chain([(200, &"n00000001"), (201, &"n99999999")]) {
            picture(&folder.path().join(format!("train/{id}/a.JPEG")), i as u8);
            picture(&folder.path().join(format!("val/{id}/b.JPEG")), i as u8);
        }
        let imagenet = open(folder.path(), "").unwrap();
        assert_eq!((imagenet.classes.len(), &*imagenet.classes[0]), (102, "n00000001"));
        let part = open(folder.path(), "subset: ImageNet100").unwrap();
        assert_eq!((part.train.len(), part.train.labels().unwrap()[99]), (100, 99));
        let test = part.test.as_ref().unwrap();
        assert_eq!((test.len(), test.image(3).unwrap().pixels[0]), (100, 3));
        let text = &part.description;
        assert!(text.starts_with("ImageNet100 (classes of contrastive multiview coding, list "), "{text}");
        assert!(text.contains(&digest(&imagenet100())), "{text}");
        std::fs::remove_dir_all(folder.path().join("train/n13037406")).unwrap();
        let text = open(folder.path(), "subset: ImageNet100").err().unwrap().to_string();
        assert!(text.contains("1 of 100 classes, such as n13037406"), "{text}");
    }

    #[test]
    fn other_folders_are_refused_with_the_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let error = || open(folder.path(), "").err().unwrap().to_string();
        assert!(error().contains("train: not found"), "{}", error());
        picture(&folder.path().join("train/bird/a.png"), 1);
        picture(&folder.path().join("val/bird/a.png"), 1);
        assert!(error().contains("ImageFolder"), "{}", error());
        picture(&folder.path().join("val/loose.png"), 1);
        std::fs::remove_dir_all(folder.path().join("val/bird")).unwrap();
        assert!(error().contains("only one of the folders"), "{}", error());
    }
}
