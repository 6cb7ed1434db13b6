//! Weight files: round trips, damage, and reading them in PyTorch.

#![allow(clippy::unwrap_used)] // helpers of tests are tests

mod common;

use common::{Perceptron, exact};
use dfdx::prelude::*;
use pauc_models::weights::{TensorFile, Values, load_into};
use pauc_models::{Head, HeadConfig, NetworkDevice};
use pauc_traits::component_ron::options;
use pauc_traits::{BuildOptions, Param, Pass};
use std::process::Command;

fn head(seed: u64) -> Box<dyn Head<Cpu>> {
    let config: HeadConfig = options().from_str("Mlp(dims: [5, 3], batch_norm: true)").unwrap();
    Cpu::default().head(&config, 4, 1, BuildOptions::seed(seed)).unwrap()
}

fn all(head: &dyn Head<Cpu>) -> Vec<Param<Cpu>> {
    head.parameters().into_iter().chain(head.statistics()).collect()
}

fn example() -> TensorFile {
    let mut file = TensorFile::new();
    file.metadata =
        [("recipe", "a \"quoted\" näme\n"), ("step", "3")].map(|(k, v)| (k.into(), v.into())).into();
    file.insert("bytes", &[3], Values::U8(vec![1, 2, 255])).unwrap();
    file.insert("weight", &[2, 2], Values::F32(vec![1.5, -0.0, f32::MIN_POSITIVE, f32::MAX])).unwrap();
    file.insert("ids", &[2], Values::I64(vec![-1, i64::MAX])).unwrap();
    file.insert("step", &[], Values::U64(vec![u64::MAX])).unwrap();
    file.insert("empty", &[0, 7], Values::F32(vec![])).unwrap();
    file
}

#[test]
fn a_file_round_trips_with_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b) = (folder.path().join("a.safetensors"), folder.path().join("b.safetensors"));
    example().save(&a).unwrap();
    let read = TensorFile::load(&a).unwrap();
    assert_eq!(read.metadata, example().metadata);
    assert!(read.names().eq(example().names()));
    assert_eq!(read.f32("weight").unwrap(), [1.5, -0.0, f32::MIN_POSITIVE, f32::MAX]);
    assert_eq!((read.i64("ids").unwrap(), read.u64("step").unwrap()), (&[-1, i64::MAX][..], &[u64::MAX][..]));
    assert_eq!((read.u8("bytes").unwrap(), read.f32("empty").unwrap()), (&[1, 2, 255][..], &[][..]));
    assert_eq!(read.get("empty").unwrap().shape, [0, 7]);
    read.save(&b).unwrap();
    assert_eq!(std::fs::read(&a).unwrap(), std::fs::read(&b).unwrap());
    let names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "a temporary file is left: {names:?}");
}

#[test]
fn missing_and_damaged_files_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.safetensors");
    let text = |path: &std::path::Path| TensorFile::load(path).unwrap_err().to_string();
    assert!(text(&path).contains("not found"));
    example().save(&path).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    for cut in [0, 4, 40, bytes.len() - 1] {
        std::fs::write(&path, &bytes[..cut]).unwrap();
        assert!(text(&path).contains("truncated or corrupt safetensors file"), "{}", text(&path));
    }
    let write = |dtype, bytes: &[u8]| {
        let view = safetensors::tensor::TensorView::new(dtype, vec![1], bytes).unwrap();
        std::fs::write(&path, safetensors::serialize([("h", view)], None).unwrap()).unwrap();
    };
    write(safetensors::Dtype::F64, &[1; 8]);
    assert!(text(&path).contains("tensor `h` holds F64: convert it to F32"), "{}", text(&path));
    // A subnormal number of 16 bits: 0x0201 units of 2⁻²⁴.
    write(safetensors::Dtype::F16, &[1, 2]);
    assert_eq!(TensorFile::load(&path).unwrap().f32("h").unwrap(), [513.0 * 2f32.powi(-24)]);
    let file = example();
    assert!(file.f32("wieght").unwrap_err().to_string().contains("it has `weight`"));
    assert!(file.f32("ids").unwrap_err().to_string().contains("holds I64; expected F32"));
    assert!(file.save(folder.path().join("no/such/folder/w")).is_err());
    assert!(example().insert("weight", &[], Values::U8(vec![0])).is_err());
    assert!(example().insert("other", &[2], Values::U8(vec![0])).is_err());
}

#[test]
fn a_failed_save_keeps_the_old_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w");
    std::fs::create_dir(&path).unwrap();
    std::fs::write(path.join("content"), "kept").unwrap();
    assert!(example().save(&path).is_err(), "a folder cannot be replaced by a file");
    assert_eq!(std::fs::read_to_string(path.join("content")).unwrap(), "kept");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn weights_load_all_or_not_at_all() {
    let dev = Cpu::default();
    let (a, b) = (head(1), head(2));
    let mut file = TensorFile::new();
    file.insert_params(&dev, "online.projector.", &all(&*a)).unwrap();
    file.insert("online.projector.1.num_batches_tracked", &[], Values::I64(vec![3])).unwrap();
    file.insert("optimizer.steps", &[], Values::U64(vec![3])).unwrap();
    load_into(&dev, &b.parameters(), &b.statistics(), &file, "online.projector.").unwrap();
    for (a, b) in all(&*a).iter().zip(all(&*b)) {
        assert_eq!(*a.value(), *b.value());
    }
    let fresh = head(3);
    let before = fresh.parameters()[0].value().clone();
    let error = |file: &TensorFile, prefix: &str| {
        load_into(&dev, &fresh.parameters(), &fresh.statistics(), file, prefix).unwrap_err().to_string()
    };
    let text = error(&file, "projector.");
    assert!(text.contains("8 missing: projector.0.bias"), "{text}");
    let mut wrong = TensorFile::new();
    wrong.insert_params(&dev, "", &all(&*a)[1..]).unwrap();
    wrong.insert("0.weight", &[4, 5], Values::F32(vec![0.0; 20])).unwrap();
    wrong.insert("7.weight", &[1], Values::F32(vec![0.0])).unwrap();
    let text = error(&wrong, "");
    assert!(text.contains("1 unexpected: 7.weight"), "{text}");
    assert!(text.contains("0.weight (has F32 [4, 5], needs F32 [5, 4])"), "{text}");
    assert_eq!(*fresh.parameters()[0].value(), before);
}

/// Loads the file into the same network in PyTorch, and compares the outputs up to the second argument.
const SCRIPT: &str = r#"
import sys, torch
from safetensors import safe_open
from safetensors.torch import load_file
tensors = load_file(sys.argv[1])
assert safe_open(sys.argv[1], "pt").metadata() == {"made by": "a test"}
x, y = tensors.pop("x"), tensors.pop("y")
net = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.BatchNorm1d(5), torch.nn.ReLU(), torch.nn.Linear(5, 3))
net.load_state_dict(tensors, strict=True)
train = net(x)
assert torch.allclose(train, y, atol=float(sys.argv[2]), rtol=0), (train - y).abs().max()
assert all(torch.equal(net.state_dict()[n].to(t.dtype), t) for n, t in tensors.items() if "running" not in n)
"#;

#[test]
fn pytorch_loads_an_exported_head_and_computes_the_same() {
    let python = std::env::var("PAUC_TEST_PYTHON").unwrap_or_else(|_| "python3".into());
    let probe = Command::new(&python).args(["-c", "import torch, safetensors.torch"]).output();
    if !probe.is_ok_and(|p| p.status.success()) {
        println!(
            "skipped: `{python}` cannot import torch and safetensors (PAUC_TEST_PYTHON names another one)"
        );
        return;
    }
    let dev = Cpu::default();
    let mut net = head(5);
    let x: Vec<f32> = (0..24).map(|i| (0.9 * i as f32).sin()).collect();
    let mut file = TensorFile::new();
    file.metadata = [("made by".into(), "a test".into())].into();
    file.insert_params(&dev, "", &all(&*net)).unwrap();
    // Both sides have rounding errors.
    let oracle = Perceptron { width: 4, dims: &[5, 3], norms: [true, false], bias: true, rectified: false };
    let parameters: Vec<_> = net.parameters().iter().map(|p| exact(&p.value())).collect();
    let tolerance =
        2.0 * oracle.forward(&exact(&x), &parameters).0.iter().map(|y| y.error).fold(0.0, f64::max);
    let images = dev.tensor_from_vec(x.clone(), (6usize, 4usize)).retaped();
    let y = net.forward(images, Pass::Momentum).unwrap().as_vec();
    file.insert("x", &[6, 4], Values::F32(x)).unwrap();
    file.insert("y", &[6, 3], Values::F32(y)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("head.safetensors");
    file.save(&path).unwrap();
    let run =
        Command::new(&python).args(["-c", SCRIPT]).arg(&path).arg(tolerance.to_string()).output().unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
}

#[test]
fn the_first_nan_or_infinity_is_found_with_its_index() {
    let mut file = TensorFile::new();
    file.insert("a", &[2], Values::F32(vec![f32::NAN, 1.0])).unwrap();
    file.insert("b", &[2, 3], Values::F32(vec![0.0, 1.0, 2.0, 3.0, 4.0, f32::NEG_INFINITY])).unwrap();
    file.insert("ids", &[1], Values::I64(vec![-1])).unwrap();
    let found = |name: &'static str| file.first_non_finite(|n| n == name).map(|e| e.to_string());
    assert_eq!(found("a").unwrap(), "tensor `a` is NaN at index [0]");
    assert_eq!(found("b").unwrap(), "tensor `b` is -inf at index [1, 2]");
    assert_eq!(found("ids"), None);
}
