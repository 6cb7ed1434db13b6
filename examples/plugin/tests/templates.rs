//! The files that `pauc-cli new` writes compile unchanged in another crate, and their tests pass. The command
//! writes these files with another name.

use pauc_traits::registry::catalog;
use std::collections::BTreeMap;

#[path = "../../../pauc-cli/templates/augmentation.rs"]
mod augmentation;
#[path = "../../../pauc-cli/templates/clusterer.rs"]
mod clusterer;
#[path = "../../../pauc-cli/templates/dataset.rs"]
mod dataset;
#[path = "../../../pauc-cli/templates/encoder.rs"]
mod encoder;
#[path = "../../../pauc-cli/templates/loss.rs"]
mod loss;
#[path = "../../../pauc-cli/templates/optimizer.rs"]
mod optimizer;
#[path = "../../../pauc-cli/templates/probe.rs"]
mod probe;
#[path = "../../../pauc-cli/templates/regularizer.rs"]
mod regularizer;

#[test]
fn every_template_registers_a_documented_component_of_its_kind() {
    let found: BTreeMap<_, _> = catalog()
        .into_iter()
        .filter(|l| l.name.ends_with("Template"))
        .inspect(|l| {
            assert!(l.doc.contains("Source: "), "{} does not name its source", l.name);
            assert!(
                !l.summary().is_empty() && l.fields.iter().all(|f| !f.doc.trim().is_empty()),
                "{}",
                l.name
            );
        })
        .map(|l| (l.kind, l.name))
        .collect();
    let expected = [
        ("augmentation", "AugmentationTemplate"),
        ("clusterer", "ClustererTemplate"),
        ("contrastive loss", "LossTemplate"),
        ("dataset", "DatasetTemplate"),
        ("encoder", "EncoderTemplate"),
        ("optimizer", "OptimizerTemplate"),
        ("probe", "ProbeTemplate"),
        ("regularizer", "RegularizerTemplate"),
    ];
    assert_eq!(found, BTreeMap::from(expected));
}
