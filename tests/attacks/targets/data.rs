//! Targets that read files: images, datasets, features, checkpoints and logs.

use pauc::cluster::feature_files::{self, Matrix};
use pauc::data::datasets::{idx, npy};
use pauc::data::decode::{Decoding, decode, dimensions};
use pauc::models::weights::TensorFile;
use pauc::report::events::Log;
use pauc::report::postmortem::{Postmortem, causes::causes, story::story};
use pauc::report::{ReportData, narrate, render};
use pauc::train::checkpoint;
use pauc::traits::dataset::Place;
use pauc::traits::{Configured, Dataset};
use std::path::{Path, PathBuf};

/// A folder of this process for readers that take a path.
pub fn folder() -> PathBuf {
    let folder = std::env::temp_dir().join(format!("pauc-targets-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    folder
}

/// Writes a file into the folder, and returns its path.
fn write(name: &str, data: &[u8]) -> PathBuf {
    let path = folder().join(name);
    std::fs::write(&path, data).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    path
}

/// Opens a dataset in the folder; reads every image, if it can be opened.
fn open(set: &str) {
    let set = Configured::<dyn Dataset>::parse(set).unwrap_or_else(|e| panic!("{set}: {e}"));
    let Ok(splits) = set.open(&Place::at(folder())) else { return };
    for source in [Some(splits.train), splits.test].into_iter().flatten() {
        let labels = source.labels().map(<[u32]>::len);
        assert!(labels.is_none_or(|n| n == source.len()), "{labels:?} labels for {} images", source.len());
        for i in 0..source.len().min(4) {
            if let Ok(image) = source.image(i) {
                assert_eq!(image.pixels.len(), image.shape.len());
            }
        }
    }
}

/// Opens features, and labels if the format can have them.
fn features(path: &Path, tensor: Option<&str>) {
    if let Ok(matrix) = Matrix::open(path, tensor) {
        let rows = matrix.rows();
        assert!(rows.rows > 0 && rows.cols > 0, "an empty matrix was accepted");
    }
}

/// Decodes an image. Its header gives the size that it has.
pub fn picture(data: &[u8]) {
    let how = Decoding { pixel_limit: 100_000, ..Decoding::default() };
    let header = dimensions(data, how.pixel_limit, Path::new("a"));
    if let (Ok(size), Ok(image)) = (header, decode(data, how, Path::new("a"))) {
        assert_eq!(size, (image.shape.height, image.shape.width));
        assert!(image.shape.height * image.shape.width <= how.pixel_limit);
    }
}

/// Reads an array as images and as features.
pub fn npy(data: &[u8]) {
    let _ = npy::parse(data.to_vec(), Path::new("a.npy"));
    features(&write("a.npy", data), None);
}

/// Reads images or labels.
pub fn idx(data: &[u8]) {
    for part in [idx::Part::Images, idx::Part::Labels] {
        if let Ok((sizes, content)) = idx::read_part(&mut &*data, part, Path::new("a")) {
            assert_eq!(sizes.iter().product::<usize>(), content.len());
        }
    }
}

/// Opens both of CIFAR's formats.
pub fn cifar(data: &[u8]) {
    for name in ["data_batch_1.bin", "test_batch.bin", "train.bin", "test.bin"] {
        write(name, data);
    }
    open("Cifar10(root: \".\")");
    open("Cifar100(root: \".\")");
}

/// Opens an archive, plain or compressed.
pub fn tar(data: &[u8]) {
    write("a.tgz", data);
    open("Tar(root: \"a.tgz\", test_fraction: 0, unpacked_limit: 1, pixel_limit: 10000)");
    write("a.tar", data);
    open("Tar(root: \"a.tar\", test_fraction: 0, pixel_limit: 10000)");
}

/// Opens a list of files, and features with labels.
pub fn csv(data: &[u8]) {
    let path = write("a.csv", data);
    open("FileList(list: \"a.csv\")");
    features(&path, None);
    let _ = feature_files::labels(&path, 3);
}

/// Opens images and features.
pub fn safetensors(data: &[u8]) {
    let path = write("a.safetensors", data);
    open("Safetensors(file: \"a.safetensors\")");
    features(&path, None);
    features(&path, Some("images"));
}

/// Opens features. Without the feature `parquet` they are refused.
pub fn parquet(data: &[u8]) {
    features(&write("a.parquet", data), None);
}

/// Reads and verifies a checkpoint.
pub fn checkpoint(data: &[u8]) {
    let path = write("checkpoint.safetensors", data);
    if let Ok(file) = TensorFile::load(&path) {
        let _ = checkpoint::verify(&file, &path);
    }
}

/// Reads a log, and makes lines and a report of it.
pub fn metrics(data: &[u8]) {
    let log = Log::parse(&String::from_utf8_lossy(data));
    log.events.iter().for_each(|event| drop(narrate::line(event)));
    // A report of what was read is complete, or refused.
    let _ = render(&ReportData::from_log(log));
}

/// Reads a postmortem, looks for its causes, and tells it as text and in a report.
pub fn postmortem(data: &[u8]) {
    let Ok(postmortem) = Postmortem::parse(&String::from_utf8_lossy(data)) else { return };
    let _ = causes(&postmortem);
    assert!(!story(&postmortem, Path::new("run")).is_empty());
    let _ = render(&ReportData { postmortem: Some(postmortem), ..ReportData::default() });
}

/// Returns an array in NumPy's format.
fn array(header: &str, values: &[u8]) -> Vec<u8> {
    let header = format!("{header:<117}\n");
    [b"\x93NUMPY\x01\x00v\x00", header.as_bytes(), values].concat()
}

/// Images that the tests of `pauc-data` have, and last a BMP image of one pixel.
pub fn pictures() -> Vec<Vec<u8>> {
    let odd = ["restarts.jpg", "progressive.jpg", "cmyk.jpg", "restarts.png"];
    let folder =
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".")).join("pauc-data/tests/odd");
    let mut all: Vec<Vec<u8>> = odd.iter().filter_map(|name| std::fs::read(folder.join(name)).ok()).collect();
    let mut bmp = b"BM\x3a\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0\x01\0\0\0\x01\0\0\0\x01\0\x18\0".to_vec();
    bmp.extend([0; 24]);
    bmp.extend([1, 2, 3, 0]);
    all.push(bmp);
    all
}

/// Arrays of bytes and of floats.
pub fn arrays() -> Vec<Vec<u8>> {
    let floats: Vec<u8> = [1.0f32, 2.0, 3.0, 4.0].iter().flat_map(|v| v.to_le_bytes()).collect();
    vec![
        array("{'descr': '|u1', 'fortran_order': False, 'shape': (2, 2, 2), }", &[7; 8]),
        array("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 2), }", &floats),
        array("{'descr': '<i8', 'fortran_order': True, 'shape': (1,), }", &[0; 8]),
    ]
}

/// Images and labels.
pub fn idx_files() -> Vec<Vec<u8>> {
    let labeled = idx::Labeled { height: 3, width: 2, pixels: vec![7; 24], labels: vec![1; 4] };
    labeled.to_bytes().into()
}

/// A record of CIFAR-10 and one of CIFAR-100.
pub fn records() -> Vec<Vec<u8>> {
    vec![[4; 3073].to_vec(), [3; 3074].to_vec()]
}

/// Returns an archive of one image and its label.
fn archive() -> Vec<u8> {
    let entry = |name: &str, content: &[u8]| {
        let mut header = [0; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[100..108].copy_from_slice(b"0000644\0");
        header[124..136].copy_from_slice(format!("{:011o}\0", content.len()).as_bytes());
        header[148..156].fill(b' ');
        header[156] = b'0';
        header[257..265].copy_from_slice(b"ustar\x0000");
        let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let mut bytes = [&header, content].concat();
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        bytes
    };
    let bmp = pictures().pop().unwrap_or_default();
    [entry("a/1.bmp", &bmp), entry("a/1.cls", b"7\n"), vec![0; 1024]].concat()
}

/// Archives.
pub fn archives() -> Vec<Vec<u8>> {
    vec![archive()]
}

/// A list of files, features and labels.
pub fn tables() -> Vec<Vec<u8>> {
    let own =
        ["path,label,split\na.bmp,cat,train\n\"b, c.bmp\",dog,test\n", "1.5,2\n-3e4,NaN\n", "0\n1\n2\n"];
    own.map(Vec::from).to_vec()
}

/// Returns a safetensors file with this header.
fn tensors(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

/// Images and features.
pub fn tensor_files() -> Vec<Vec<u8>> {
    vec![
        tensors(r#"{"images":{"dtype":"U8","shape":[2,2,2],"data_offsets":[0,8]}}"#, &[5; 8]),
        tensors(r#"{"features":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}"#, &[0; 16]),
    ]
}

/// The frame of a Parquet file. The feature `parquet` has complete ones in its own tests.
pub fn parquet_files() -> Vec<Vec<u8>> {
    vec![b"PAR1\x15\x02\x19\x2c\x48\x01\x61\x15\x02\0\x16\0\x19\x0c\0\x0f\0\0\0PAR1".to_vec()]
}

/// Files with a checkpoint's metadata.
pub fn checkpoints() -> Vec<Vec<u8>> {
    let header = r#"{"__metadata__":{"format":"pauc-checkpoint-2","blake3":"00"},"a":{"dtype":"I64","shape":[1],"data_offsets":[0,8]}}"#;
    vec![tensors(header, &[1; 8])]
}

/// A log of several events.
pub fn logs() -> Vec<Vec<u8>> {
    let log = concat!(
        r#"{"event":"step","step":1,"epoch":0.5,"lr":0.1,"loss":2.5,"terms":[{"name":"InfoNce","value":2.5,"weight":1.0,"#,
        r#""chance":3.9,"skipped":false}],"grad_norm":1.0,"images_per_second":10.0}"#,
        "\n",
        r#"{"event":"step","step":2,"epoch":1.0,"lr":null,"loss":null,"terms":[],"grad_norm":1e300,"images_per_second":0}"#,
        "\n",
        r#"{"event":"gradients","step":1,"epoch":0.5,"terms":[]}"#,
        "\n",
        r#"{"event":"gradients","step":2,"epoch":1.0,"terms":[{"name":"A","norm":1e300,"cosines":[]},{"name":"B","#,
        r#""norm":null,"cosines":[-0.5]},{"name":"C","norm":0,"cosines":[null,null,1.0]}],"total":null}"#,
        "\n",
        r#"{"event":"new in a later version"}"#,
        "\n"
    );
    vec![log.into()]
}

/// A postmortem with every part, and one of an earlier version.
pub fn postmortems() -> Vec<Vec<u8>> {
    let whole = concat!(
        r#"{"step":3,"total_steps":9,"epoch":0.5,"what":"InfoNce","place":"its value is NaN","first":{"kind":"term","#,
        r#""name":"InfoNce","shape":[],"index":[],"value":"NaN","non_finite":1,"elements":1},"steps":[{"step":2,"#,
        r#""loss":4.5,"terms":[{"name":"InfoNce","value":4.5,"weight":1.0,"temperature":0.2}],"learning_rate":0.1,"#,
        r#""gradient_norm":1e300,"gradient_by_part":[{"part":"encoder","norm":"inf"}],"spread":0.01,"rank":1.5,"#,
        r#""embedding_norms":{"least":0.0,"mean":1.0,"most":2.0}},{"step":3,"loss":"NaN","learning_rate":0.1}],"#,
        r#""terms":[{"name":"InfoNce","value":"NaN","gradient_norm":"NaN","temperature":1e-9,"#,
        r#""temperature_path":"objective[0].term.temperature","largest_logit":1e9}],"parameters":[{"part":"encoder","#,
        r#""norm":1.0,"largest":0.5,"largest_in":"encoder.0.weight"}],"settings":{"optimizer":"Sgd","#,
        r#""learning_rate":0.1,"clip_gradient":1.0},"suspects":[{"id":7,"row":1,"label":2,"class":"cat","name":"a.png","#,
        r#""why":"nothing stands out","constant":true,"views":2}],"affected_samples":1,"causes":[{"kind":"temperature","#,
        r#""title":"t","evidence":"e","remedies":[{"set":["a=1"],"text":"x"}]}],"samples":[5,7]}"#
    );
    let old =
        r#"{"step":3,"what":"the term InfoNce","samples":[5],"gradient_norms":[{"step":1,"norm":0.5}]}"#;
    vec![whole.into(), old.into()]
}
