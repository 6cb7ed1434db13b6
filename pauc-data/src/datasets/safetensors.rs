//! Images and labels in a safetensors file.

use super::array_datasets::{self, Array, Layout, Number};
use ::safetensors::{Dtype, SafeTensors};
use pauc_traits::dataset::{Place, Splits};
use pauc_traits::{Dataset, Error, Result, component};
use std::path::{Path, PathBuf};

component! {
    /// Images and labels in one safetensors file.
    ///
    /// The tensors are `images`, `labels`, `test_images` and `test_labels`. Only the first is required.
    ///
    /// Images are unsigned bytes: N×H×W or, depending on `layout`, N×H×W×C or N×C×H×W, with one or three
    /// channels. Labels are N integers, starting at 0.
    pub struct Safetensors: Dataset {
        /// The file.
        pub file: PathBuf,
        /// `ChannelsLast` or `ChannelsFirst`.
        pub layout: Layout = Layout::ChannelsLast,
    }
}

fn tensor(file: &SafeTensors<'_>, name: &str, path: &Path) -> Result<Option<Array>> {
    let Ok(view) = file.tensor(name) else { return Ok(None) };
    let number = match view.dtype() {
        Dtype::U8 => Number::Unsigned(1),
        Dtype::I8 => Number::Signed(1),
        Dtype::U16 => Number::Unsigned(2),
        Dtype::I16 => Number::Signed(2),
        Dtype::U32 => Number::Unsigned(4),
        Dtype::I32 => Number::Signed(4),
        Dtype::U64 => Number::Unsigned(8),
        Dtype::I64 => Number::Signed(8),
        other => {
            let message = format!(
                "the tensor `{name}` has elements of type {other:?}; expected U8 for images, an integer type for labels"
            );
            return Err(Error::damaged(path, message));
        }
    };
    let (origin, bytes) = (path.join(name), view.data().to_vec());
    Ok(Some(Array { origin, shape: view.shape().to_vec(), number, bytes }))
}

impl Dataset for Safetensors {
    fn open(&self, place: &Place) -> Result<Splits> {
        let path = place.resolve(&self.file);
        let bytes = array_datasets::bytes_of(&path)?;
        let file = SafeTensors::deserialize(&bytes)
            .map_err(|e| Error::damaged(&path, format!("is not a valid safetensors file: {e}")))?;
        let pair = |images: &str, labels: &str| -> Result<_> {
            let labels = tensor(&file, labels, &path)?;
            Ok(tensor(&file, images, &path)?.map(|images| (images, labels)))
        };
        let train = pair("images", "labels")?.ok_or_else(|| {
            let names = file.names();
            Error::damaged(&path, format!("has no tensor `images`; its tensors are {names:?}"))
        })?;
        let test = pair("test_images", "test_labels")?;
        array_datasets::open(&self.file.display().to_string(), train, test, self.layout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::safetensors::tensor::{TensorView, serialize};

    #[test]
    fn tensors_are_found_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let labels = [2u32, 0].map(u32::to_le_bytes).concat();
        let pixels: Vec<u8> = (0..12).collect();
        let view = |dtype, shape: &[usize], data| TensorView::new(dtype, shape.to_vec(), data).unwrap();
        let images = view(Dtype::U8, &[2, 3, 1, 2], &pixels);
        let open = |tensors: Vec<(&str, TensorView<'_>)>| {
            std::fs::write(folder.path().join("a"), serialize(tensors, None).unwrap()).unwrap();
            let set = Safetensors { file: "a".into(), layout: Layout::ChannelsFirst };
            set.open(&Place::at(folder.path()))
        };
        let splits =
            open(vec![("images", images.clone()), ("labels", view(Dtype::U32, &[2], &labels))]).unwrap();
        assert_eq!((splits.train.labels().unwrap(), splits.classes.len()), (&[2, 0][..], 3));
        assert_eq!(*splits.train.image(0).unwrap().pixels, [0, 2, 4, 1, 3, 5]);
        let text = open(vec![("pictures", images.clone())]).err().unwrap().to_string();
        assert!(text.contains("[\"pictures\"]"), "{text}");
        let text = open(vec![("images", view(Dtype::F32, &[3], &pixels))]).err().unwrap().to_string();
        assert!(text.contains("F32"), "{text}");
        std::fs::write(folder.path().join("a"), b"no").unwrap();
        let set = Safetensors { file: "a".into(), layout: Layout::ChannelsLast };
        assert!(set.open(&Place::at(folder.path())).is_err());
    }
}
