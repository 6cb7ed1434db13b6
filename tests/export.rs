//! Export of a trained encoder, and its use as a starting point.
#![allow(clippy::unwrap_used)] // helpers of tests, which Clippy takes for library code

mod common;

use common::{only_run, pauc};
use pauc::models::weights::{FileTensor, TensorFile, Values};
use pauc::train::network_input::NetworkInput;
use std::path::{Path, PathBuf};
use std::process::Command;

const RECIPE: &str = r#"Recipe(
    name: "export",
    data: Shapes(count: 64, size: 16, classes: 4, seed: 1),
    views: [(count: 2, ops: [RandomResizedCrop(size: 16)])],
    encoder: ResNet18(stem: Small, width: 64),
    projector: Mlp(dims: [8]),
    momentum_encoder: Ema(momentum: 0.9),
    objective: [(term: InfoNce(temperature: 0.2, negatives: Keys))],
    train: (epochs: 1, batch: 32),
)
"#;

fn trained(folder: &Path, name: &str, set: &[&str]) -> PathBuf {
    let recipe = folder.join("recipe.ron");
    std::fs::write(&recipe, RECIPE).unwrap();
    let (recipe, out) = (recipe.display().to_string(), folder.join(name));
    let mut args = vec!["run".to_string(), recipe, "--out".into(), out.display().to_string()];
    args.extend(set.iter().flat_map(|s| ["--set".to_string(), s.to_string()]));
    let done = pauc(&args);
    assert_eq!(done.code, 0, "{}", done.stderr);
    only_run(&out)
}

fn exported(run: &Path, to: &Path, more: &[&str]) -> TensorFile {
    let mut args = vec!["export".to_string(), run.display().to_string(), "--out".into()];
    args.push(to.display().to_string());
    args.extend(more.iter().map(|s| s.to_string()));
    let done = pauc(&args);
    assert_eq!(done.code, 0, "{}", done.stderr);
    TensorFile::load(to).unwrap()
}

#[test]
fn an_exported_encoder_starts_another_run_and_frozen_parts_stay() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("encoder.safetensors");
    let first = exported(&trained(folder.path(), "first", &[]), &path, &[]);
    let weights = format!("encoder_weights=(path: {:?})", path.display().to_string());
    let set = [&weights, "frozen=[\"conv1\", \"layer1.0\"]", "optimizer=Sgd(lr: 0.5)"];
    let second = trained(folder.path(), "second", &set);
    let second = exported(&second, &folder.path().join("second.safetensors"), &[]);
    let input: NetworkInput = serde_json::from_str(&second.metadata["input"]).unwrap();
    assert_eq!((input.height, input.width, input.channels), (16, 16, 3));
    assert_eq!((input.mean.len(), input.deviation.len()), (3, 3));
    assert!(input.mean.iter().chain(&input.deviation).all(|v| (0.0..1.0).contains(v)), "{input:?}");
    let encoder = &second.metadata["encoder"];
    assert!(encoder.starts_with("ResNet18(") && encoder.contains("stem: Small"), "{encoder}");
    for name in first.names().filter(|n| n.ends_with("weight")) {
        let same = first.f32(name).unwrap() == second.f32(name).unwrap();
        assert_eq!(same, name.starts_with("conv1.") || name.starts_with("layer1.0."), "{name}");
    }
    // Training again with a tiny learning rate does not change the weights: each update is rounded away.
    let set = [&weights, "optimizer=Sgd(lr: 1e-30)"];
    let third =
        exported(&trained(folder.path(), "third", &set), &folder.path().join("third.safetensors"), &[]);
    assert_eq!(first.f32("conv1.weight").unwrap(), third.f32("conv1.weight").unwrap());
}

#[test]
fn weights_that_do_not_fit_and_unknown_parts_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = folder.path().join("recipe.ron");
    std::fs::write(&recipe, RECIPE).unwrap();
    let check = |set: &str| pauc(["check", &recipe.display().to_string(), "--set", set]);
    let wrong = check("frozen=[\"conv1\", \"layr1.0\"]");
    assert_eq!(wrong.code, 2, "{}", wrong.stderr);
    assert!(wrong.stderr.contains("error[E0218]") && wrong.stderr.contains("`layr1.0`"), "{}", wrong.stderr);
    assert!(wrong.stderr.contains("did you mean"), "{}", wrong.stderr);
    let missing =
        pauc(["run", &recipe.display().to_string(), "--set", "encoder_weights=(path: \"no.safetensors\")"]);
    assert_eq!(missing.code, 4, "{}", missing.stderr);
    assert!(missing.stderr.contains("no.safetensors"), "{}", missing.stderr);
    let path = folder.path().join("encoder.safetensors");
    exported(&trained(folder.path(), "wide", &[]), &path, &["--momentum"]);
    let weights = format!("encoder_weights=(path: {:?})", path.display().to_string());
    let narrow = ["--set", "encoder.width=8", "--set", &weights];
    let recipe = recipe.display().to_string();
    let unfit = pauc(["run", &recipe].into_iter().chain(narrow));
    assert_eq!(unfit.code, 4, "{}", unfit.stderr);
    assert!(
        unfit.stderr.contains("conv1.weight") && unfit.stderr.contains("[64, 3, 3, 3]"),
        "{}",
        unfit.stderr
    );
}

#[test]
fn a_folder_for_timm_has_weights_configuration_and_model_card() {
    let folder = tempfile::tempdir().unwrap();
    let run = trained(folder.path(), "run", &[VIT, "probes=[Knn(k: 2)]"]);
    let out = folder.path().join("vit");
    let export = |more: &[&str]| {
        let args = ["export", run.to_str().unwrap(), "--format", "timm", "--out", out.to_str().unwrap()];
        pauc(args.iter().chain(more))
    };
    let done = export(&["--license", "cc-by-4.0", "--momentum"]);
    assert_eq!(done.code, 0, "{}", done.stderr);
    let text = |name: &str| std::fs::read_to_string(out.join(name)).unwrap();
    let config: serde_json::Value = serde_json::from_str(&text("config.json")).unwrap();
    assert_eq!(config["architecture"], "vit_tiny_patch16_224");
    let arguments = serde_json::json!({
        "img_size": [16, 16], "patch_size": 4, "embed_dim": 12, "num_heads": 2, "depth": 1
    });
    assert_eq!(config["model_args"], arguments);
    assert_eq!((&config["num_features"], &config["num_classes"]), (&12.into(), &0.into()));
    let preprocessing = &config["pretrained_cfg"];
    assert_eq!(preprocessing["input_size"], serde_json::json!([3, 16, 16]));
    let weights = TensorFile::load(out.join("model.safetensors")).unwrap();
    let input: serde_json::Value = serde_json::from_str(&weights.metadata["input"]).unwrap();
    for (ours, theirs) in [("mean", "mean"), ("deviation", "std")] {
        let numbers = |value: &serde_json::Value| {
            value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect::<Vec<_>>()
        };
        assert_eq!(numbers(&input[ours]), numbers(&preprocessing[theirs]));
    }
    assert_eq!(
        (&*weights.metadata["format"], &weights.metadata["encoder"][..17]),
        ("pt", "VisionTransformer")
    );
    let same = exported(&run, &folder.path().join("encoder.safetensors"), &["--momentum"]);
    assert_eq!(same.f32("pos_embed").unwrap(), weights.f32("pos_embed").unwrap());
    let card = text("README.md");
    for part in [
        "license: cc-by-4.0\n",
        "| `knn/cos/k2/t0.07` | – | – |",
        "its momentum encoder",
        "Shapes: 64 training",
    ] {
        assert!(card.contains(part), "no {part:?} in\n{card}");
    }
    let again = export(&[]);
    assert_eq!(again.code, 2, "{}", again.stderr);
    assert!(again.stderr.contains("--force"), "{}", again.stderr);
    assert_eq!(export(&["--force"]).code, 0);
    assert!(text("README.md").contains("license: unknown\n"));
}

#[test]
fn what_cannot_be_exported_for_timm_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let run = trained(folder.path(), "run", &["encoder.width=4"]);
    let refused = |run: &Path, more: &[&str], code, says: &[&str]| {
        let out = folder.path().join("out");
        let args = ["export", run.to_str().unwrap(), "--format", "timm", "--out", out.to_str().unwrap()];
        let done = pauc(args.iter().chain(more));
        assert_eq!(done.code, code, "{}", done.stderr);
        assert!(says.iter().all(|part| done.stderr.contains(part)), "{says:?}: {}", done.stderr);
        assert_eq!(done.stderr.trim_end().lines().count(), 1, "{}", done.stderr);
        assert!(!out.exists());
        let rest = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name());
        assert!(rest.into_iter().all(|name| !name.to_string_lossy().ends_with(".tmp")));
    };
    refused(&run, &[], 2, &["ResNet18", "`width: 4`", "--format onnx"]);
    let net = trained(folder.path(), "net", &["encoder=ConvNet(channels: [4])"]);
    refused(&net, &[], 2, &["ConvNet", "timm has no such encoder"]);
    let next = "encoder=ConvNeXt(size: Custom(depths: [1, 1], widths: [4, 6]))";
    let next = trained(folder.path(), "next", &[next]);
    refused(&next, &[], 2, &["ConvNeXt", "four stages, got 2"]);
    let next = "encoder=ConvNeXt(size: Custom(depths: [1, 1, 1, 1], widths: [4, 4, 4, 4]), patch: 2)";
    let next = trained(folder.path(), "strides", &[next]);
    refused(&next, &[], 2, &["ConvNeXt", "`patch: 2`"]);
    let vit = trained(folder.path(), "vit", &[VIT]);
    refused(&vit, &["--license", "all rights: reserved"], 2, &["license", "`mit`"]);
    let checkpoint = vit.join("checkpoints/last.safetensors");
    let mut bytes = std::fs::read(&checkpoint).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    let copy = folder.path().join("copy.safetensors");
    std::fs::write(&copy, bytes).unwrap();
    refused(&copy, &[], 4, &["copy.safetensors", "BLAKE3"]);
    refused(&folder.path().join("missing"), &[], 4, &["missing", "not found"]);
}

/// A small vision transformer, as a change of the recipe.
const VIT: &str = "encoder=VisionTransformer(size: Custom(width: 12, heads: 2), patch: 4, depth: 1)";

#[test]
fn a_folder_of_timm_starts_a_run_on_images_of_another_size() {
    let folder = tempfile::tempdir().unwrap();
    let run = trained(folder.path(), "first", &[VIT]);
    let timm = folder.path().join("timm");
    let out = timm.to_str().unwrap();
    assert_eq!(pauc(["export", run.to_str().unwrap(), "--format", "timm", "--out", out]).code, 0);
    // As others publish them: in half precision, with a classifier.
    let first = TensorFile::load(timm.join("model.safetensors")).unwrap();
    let mut tensors: Vec<_> = first.names().map(|n| (n.to_string(), first.get(n).unwrap().clone())).collect();
    let classifier = FileTensor { shape: vec![12], values: Values::F32(vec![1.0; 12]) };
    tensors.push(("head.bias".into(), classifier));
    write_bf16(&timm.join("model.safetensors"), &tensors);
    let larger = [
        "data=Shapes(count: 64, size: 24, classes: 4, seed: 1)",
        "views[0].ops=[RandomResizedCrop(size: 24)]",
    ];
    let weights = format!("encoder_weights=(path: {out:?})");
    let recipe = folder.path().join("recipe.ron").display().to_string();
    let set = [VIT, larger[0], larger[1], &weights, "optimizer=Sgd(lr: 1e-30)"];
    let check = pauc(["check", &recipe].into_iter().chain(set.iter().flat_map(|s| ["--set", s])));
    assert_eq!(check.code, 0, "{}", check.stderr);
    for part in ["warning[E0225]", "without head.bias", "pos_embed: resized from 4×4 to 6×6 positions"] {
        assert!(check.stderr.contains(part), "no {part}: {}", check.stderr);
    }
    let second = trained(folder.path(), "second", &set);
    let second = exported(&second, &folder.path().join("second.safetensors"), &[]);
    let rounded = |name: &str| {
        first.f32(name).unwrap().iter().map(|v| f32::from_bits(v.to_bits() & 0xffff_0000)).collect::<Vec<_>>()
    };
    let name = "blocks.0.mlp.fc1.weight";
    assert_eq!(second.f32(name).unwrap(), rounded(name));
    let positions = second.get("pos_embed").unwrap();
    assert_eq!(positions.shape, [1, 37, 12]);
    assert_eq!(second.f32("pos_embed").unwrap()[..12], rounded("pos_embed")[..12], "the class token's");
}

#[test]
fn conv_next_starts_from_timms_folder_without_its_classifier() {
    const NEXT: &str = "encoder=ConvNeXt(size: Custom(depths: [1, 1, 1, 1], widths: [4, 4, 4, 6]), patch: 1)";
    let folder = tempfile::tempdir().unwrap();
    let run = trained(folder.path(), "first", &[NEXT]);
    let timm = folder.path().join("timm");
    let out = timm.to_str().unwrap();
    assert_eq!(pauc(["export", run.to_str().unwrap(), "--format", "timm", "--out", out]).code, 0);
    let config = std::fs::read_to_string(timm.join("config.json")).unwrap();
    for part in ["\"architecture\": \"convnext_tiny\"", "\"dims\": [", "\"patch_size\": 1", "\"head.fc\""] {
        assert!(config.contains(part), "no {part} in {config}");
    }
    let weights = timm.join("model.safetensors");
    let mut file = TensorFile::load(&weights).unwrap();
    file.insert("head.fc.weight", &[2, 6], Values::F32(vec![1.0; 12])).unwrap();
    file.save(&weights).unwrap();
    // Also as a file, without the configuration that names the classifier.
    for path in [out, weights.to_str().unwrap()] {
        let set = [NEXT, &format!("encoder_weights=(path: {path:?})"), "optimizer=Sgd(lr: 1e-30)"];
        let second = trained(folder.path(), &format!("from{}", path.len()), &set);
        let second = exported(&second, &folder.path().join("second.safetensors"), &[]);
        assert_eq!(
            second.names().collect::<Vec<_>>(),
            file.names().filter(|n| *n != "head.fc.weight").collect::<Vec<_>>()
        );
        for name in ["head.norm.weight", "stages.3.blocks.0.mlp.fc1.weight", "stem.0.weight"] {
            assert_eq!(second.f32(name).unwrap(), file.f32(name).unwrap(), "{name}");
        }
    }
}

/// Writes tensors of `f32` as BF16, whose numbers are the upper halves.
fn write_bf16(path: &Path, tensors: &[(String, FileTensor)]) {
    use safetensors::{Dtype, serialize, tensor::TensorView};
    let halves = |values: &Values| match values {
        Values::F32(all) => all.iter().flat_map(|v| ((v.to_bits() >> 16) as u16).to_le_bytes()).collect(),
        other => panic!("{other:?}"),
    };
    let bytes: Vec<Vec<u8>> = tensors.iter().map(|(_, t)| halves(&t.values)).collect();
    let views = tensors.iter().zip(&bytes).map(|((name, tensor), bytes)| {
        (name.clone(), TensorView::new(Dtype::BF16, tensor.shape.clone(), bytes).unwrap())
    });
    std::fs::write(path, serialize(views, None).unwrap()).unwrap();
}

#[test]
fn folders_that_do_not_fit_are_refused_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let run = trained(folder.path(), "run", &[VIT]);
    let timm = folder.path().join("timm");
    let out = timm.to_str().unwrap();
    assert_eq!(pauc(["export", run.to_str().unwrap(), "--format", "timm", "--out", out]).code, 0);
    let recipe = folder.path().join("recipe.ron").display().to_string();
    let refused = |encoder: &str, path: &Path, says: &[&str]| {
        let weights = format!("encoder_weights=(path: {:?})", path.display().to_string());
        let runs = folder.path().join("refused").display().to_string();
        let done = pauc(["run", &recipe, "--out", &runs, "--set", encoder, "--set", &weights]);
        assert_eq!(done.code, 4, "{}", done.stderr);
        assert!(says.iter().all(|part| done.stderr.contains(part)), "{says:?}: {}", done.stderr);
        assert_eq!(done.stderr.trim_end().lines().count(), 1, "{}", done.stderr);
    };
    refused("train.seed=1", &timm, &["missing: bn1", "unexpected: blocks", "is a vit_tiny_patch16_224"]);
    let weights = timm.join("model.safetensors");
    let mut file = TensorFile::load(&weights).unwrap();
    file.replace("pos_embed", &[1, 12, 12], Values::F32(vec![0.0; 144])).unwrap();
    file.save(&weights).unwrap();
    refused(VIT, &timm, &["pos_embed has 11 positions besides the class token", "4×4"]);
    std::fs::write(timm.join("config.json"), "{").unwrap();
    refused(VIT, &timm, &["config.json"]);
    std::fs::remove_file(&weights).unwrap();
    std::fs::write(timm.join("config.json"), "{}").unwrap();
    refused(VIT, &timm, &["model.safetensors", "not found"]);
    std::fs::write(timm.join("pytorch_model.bin"), "").unwrap();
    refused(VIT, &timm, &["pytorch_model.bin", "safe_serialization=True"]);
    let pickle = folder.path().join("resnet.pth");
    std::fs::write(&pickle, b"PK\x03\x04").unwrap();
    refused("train.seed=1", &pickle, &["resnet.pth", "save_file"]);
}

/// The lines that load an exported ResNet-18 into torchvision's, as docs/src/runs.md shows them.
const LOADER: &str = r#"
import sys, torch, torchvision
from safetensors.torch import load_file
weights = load_file(sys.argv[1])
net = torchvision.models.resnet18()
net.conv1 = torch.nn.Conv2d(3, 64, 3, stride=1, padding=1, bias=False)  # stem: Small
net.maxpool = torch.nn.Identity()
net.fc = torch.nn.Identity()
net.load_state_dict(weights, strict=True)
net.eval()
"#;

#[test]
fn torchvision_loads_an_exported_encoder() {
    let documented = std::fs::read_to_string(common::root().join("docs/src/runs.md")).unwrap();
    assert!(documented.contains(LOADER.trim()), "docs/src/runs.md does not show this loader:\n{LOADER}");
    let python = std::env::var("PAUC_TEST_PYTHON").unwrap_or_else(|_| "python3".into());
    let probe = Command::new(&python).args(["-c", "import torchvision, safetensors.torch"]).output();
    if !probe.is_ok_and(|p| p.status.success()) {
        println!(
            "skipped: `{python}` cannot import torchvision and safetensors (PAUC_TEST_PYTHON names another one)"
        );
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("encoder.safetensors");
    exported(&trained(folder.path(), "run", &[]), &path, &[]);
    let script = format!("{LOADER}assert net(torch.zeros(2, 3, 16, 16)).shape == (2, 512)");
    let run = Command::new(&python).args(["-c", &script]).arg(&path).output().unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
}
