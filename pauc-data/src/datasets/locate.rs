//! From a path to the dataset that reads it.

use super::{cannot_open, compressed, remedy};
use crate::decode::EXTENSIONS;
use pauc_traits::component_ron::options;
use pauc_traits::registry::did_you_mean;
use pauc_traits::{Error, Result};
use std::path::Path;

/// A dataset for a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    /// The dataset as a recipe writes it.
    pub dataset: String,
    /// A name for recipes, after the file or folder.
    pub name: String,
}

/// Returns the dataset for a file or folder: image files in folders, archives, tables, arrays, or the files of a standard
/// dataset. Only names are looked at.
///
/// # Errors
/// [`Error::Config`] if it is something else, such as a run's folder or a text, and other errors if it does not exist or
/// cannot be listed.
pub fn locate(path: &Path) -> Result<Located> {
    let not_data = |message: String| Error::config(format!("{} {message}", path.display()));
    let metadata = std::fs::metadata(path).map_err(|e| missing(path, e))?;
    let text = path.to_str().ok_or_else(|| {
        not_data("is not UTF-8, so a recipe cannot name it; rename the file or folder".into())
    })?;
    let quoted = options().to_string(text).map_err(|e| not_data(e.to_string()))?;
    let field = |dataset: &str, field: &str| format!("{dataset}({field}: {quoted})");
    let dataset = if metadata.is_dir() {
        if path.join("recipe.resolved.ron").is_file() || path.join("metrics.jsonl").is_file() {
            return Err(not_data(
                "is the folder of a run; give the folder of images, or continue the run with `pauc-cli resume`"
                    .into(),
            ));
        }
        field(of_folder(path)?, "root")
    } else {
        let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default();
        match &*extension {
            _ if compressed(path).is_some() => field("Tar", "root"),
            "parquet" => field("Parquet", "root"),
            "npy" => field("Npy", "images"),
            "safetensors" => field("Safetensors", "file"),
            "csv" | "tsv" => field("FileList", "list"),
            image if EXTENSIONS.contains(&image) => {
                return Err(not_data("is a single image; give the folder that it lies in".into()));
            }
            _ => {
                let remedy = remedy(path).unwrap_or(
                    "give a folder of images, a tar archive, a table of paths (.csv, .tsv), or arrays \
                     (.npy, .safetensors, .parquet)",
                );
                return Err(not_data(format!("is not a dataset; {remedy}")));
            }
        }
    };
    Ok(Located { dataset, name: name(path) })
}

/// Returns whether a path on the command line is meant as data, rather than as a recipe: a folder, a file of a format for
/// data, or a missing file that is not called `.ron`.
pub fn is_meant_as_data(path: &Path) -> bool {
    let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default();
    let of_data = ["parquet", "npy", "safetensors", "csv", "tsv"];
    path.is_dir()
        || compressed(path).is_some()
        || of_data.contains(&&*extension)
        || EXTENSIONS.contains(&&*extension)
        || remedy(path).is_some()
        || (extension != "ron" && !path.exists())
}

/// Returns the dataset for a folder, by the files in it.
fn of_folder(folder: &Path) -> Result<&'static str> {
    let has =
        |name: &str| [name.to_string(), format!("{name}.gz")].iter().any(|name| folder.join(name).is_file());
    if has("data_batch_1.bin") || folder.join("cifar-10-batches-bin").is_dir() {
        return Ok("Cifar10");
    }
    if folder.join("cifar-100-binary").is_dir() || (has("train.bin") && has("fine_label_names.txt")) {
        return Ok("Cifar100");
    }
    if has("train_X.bin") || folder.join("stl10_binary").is_dir() {
        return Ok("Stl10");
    }
    if has("train-images-idx3-ubyte") || has("train-images.idx3-ubyte") {
        // The two have the same files.
        let is_fashion = name(folder).to_lowercase().contains("fashion");
        return Ok(if is_fashion { "FashionMnist" } else { "Mnist" });
    }
    let (mut tables, mut archives, mut images) = (false, false, false);
    for entry in std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))? {
        let path = entry.map_err(|e| Error::io(folder, e))?.path();
        let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default();
        tables |= extension == "parquet";
        archives |= compressed(&path).is_some();
        let is_hidden = path.file_name().is_none_or(|name| name.to_string_lossy().starts_with('.'));
        images |= EXTENSIONS.contains(&&*extension) || (!is_hidden && path.is_dir());
        if images {
            break;
        }
    }
    Ok(match (images, archives, tables) {
        (false, true, _) => "Tar",
        (false, false, true) => "Parquet",
        _ => "ImageFolder",
    })
}

/// Returns the error for a path that cannot be looked at, with the most similar name beside it.
fn missing(path: &Path, error: std::io::Error) -> Error {
    let wanted = path.file_name().unwrap_or_default().to_string_lossy();
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let beside: Vec<String> = std::fs::read_dir(folder)
        .map(|entries| entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect())
        .unwrap_or_default();
    let near = did_you_mean(&wanted, beside.iter().map(String::as_str));
    let remedy = near.map_or_else(
        || "give the path of a folder of images".to_string(),
        |near| format!("did you mean `{}`?", path.with_file_name(near).display()),
    );
    cannot_open(path, error, &remedy)
}

/// Returns the name for a recipe: that of the file or folder, without its extension, in characters that a recipe's name may
/// have.
fn name(path: &Path) -> String {
    let absolute = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    let whole = absolute.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let stem = match absolute.is_dir() {
        true => &whole[..],
        false => whole.split('.').next().unwrap_or_default(),
    };
    let fits = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' };
    let fitting: String = stem.chars().map(fits).take(100).collect();
    let fitting = fitting.trim_start_matches(['.', '-']);
    if fitting.is_empty() { "images".into() } else { fitting.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::Builder::new().prefix("data").tempdir().unwrap();
        for file in files {
            let path = folder.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        folder
    }

    #[test]
    fn folders_are_known_by_their_files() {
        for (files, dataset) in [
            (&["a.jpg", "b.PNG"][..], "ImageFolder(root:"),
            (&["cat/a.jpg", "notes.tar"], "ImageFolder(root:"),
            (&["shard-0.tar", "shard-1.tar"], "Tar(root:"),
            (&["train-0.parquet"], "Parquet(root:"),
            (&["data_batch_1.bin"], "Cifar10(root:"),
            (&["cifar-10-batches-bin/data_batch_1.bin"], "Cifar10(root:"),
            (&["train-images-idx3-ubyte.gz"], "Mnist(root:"),
            (&["fashion/train-images-idx3-ubyte.gz"], "FashionMnist(root:"),
            (&["readme.txt"], "ImageFolder(root:"),
        ] {
            let folder = tree(files);
            let inner = if files[0].starts_with("fashion") { "fashion" } else { "" };
            let located = locate(&folder.path().join(inner)).unwrap();
            assert!(located.dataset.starts_with(dataset), "{files:?}: {}", located.dataset);
        }
    }

    #[test]
    fn files_are_known_by_their_extensions() {
        let folder = tree(&["a.tar.gz", "b.csv", "c.npy", "d.safetensors", "e e.TSV"]);
        let of = |name: &str| locate(&folder.path().join(name)).unwrap();
        assert!(of("a.tar.gz").dataset.starts_with("Tar(root: \""));
        assert!(of("b.csv").dataset.starts_with("FileList(list: \""));
        assert!(of("c.npy").dataset.starts_with("Npy(images: \""));
        assert!(of("d.safetensors").dataset.starts_with("Safetensors(file: \""));
        assert_eq!((of("a.tar.gz").name, of("e e.TSV").name), ("a".into(), "e-e".into()));
    }

    #[test]
    fn other_paths_are_refused_with_the_remedy() {
        let folder = tree(&["photos/a.jpg", "run/metrics.jsonl", "clip.mp4", "notes.txt", "all.zip"]);
        let says = |name: &str| locate(&folder.path().join(name)).unwrap_err().to_string();
        assert!(says("photo").contains("not found; did you mean `"), "{}", says("photo"));
        assert!(says("photo").ends_with("photos`?"), "{}", says("photo"));
        assert!(says("photos/a.jpg").contains("single image"));
        assert!(says("run").contains("`pauc-cli resume`"));
        assert!(says("clip.mp4").contains("ffmpeg"));
        assert!(says("notes.txt").contains("is not a dataset; give a folder of images"));
        assert!(says("all.zip").contains("unpack"));
    }

    #[test]
    fn quotes_in_paths_are_escaped() {
        let folder = tree(&["a \"b\"/c.jpg"]);
        let located = locate(&folder.path().join("a \"b\"")).unwrap();
        let dataset =
            pauc_traits::Configured::<pauc_traits::registry::kind::Dataset>::parse(&located.dataset);
        assert_eq!((dataset.unwrap().name(), &*located.name), ("ImageFolder", "a--b-"));
    }
}
