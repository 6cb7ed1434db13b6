//! Help texts: a component, a code, a whole recipe.

use crate::codes;
use crate::plan::Plan;
use pauc_models::device::NetworkDevice;
use pauc_traits::Result;
use pauc_traits::registry::{self, Field, Listing};
use pauc_traits::schedule::Clock;
use std::fmt::Write;

/// What is known of a name: a component, a section of recipes, or a code. `None` if it is none of these.
pub fn name(what: &str) -> Option<String> {
    if let Some(code) = codes::find(what) {
        return Some(format!("{}: {}\n\n{}\n", code.code, code.title, code.text));
    }
    if what.eq_ignore_ascii_case("recipe") {
        return Some(section("Recipe", "A whole experiment.", crate::recipe::Recipe::FIELDS));
    }
    let found: Vec<Listing> =
        registry::catalogue().into_iter().filter(|l| l.name.eq_ignore_ascii_case(what)).collect();
    (!found.is_empty()).then(|| found.iter().map(component).collect::<Vec<_>>().join("\n"))
}

/// Names that are close to one that [`name`] does not know.
pub fn suggestion(what: &str) -> Option<&'static str> {
    registry::did_you_mean(what, registry::catalogue().iter().map(|l| l.name))
}

/// A component's page.
pub fn component(l: &Listing) -> String {
    let doc = l.doc.lines().map(|line| line.strip_prefix(' ').unwrap_or(line)).collect::<Vec<_>>().join("\n");
    let mut out = format!("{} — {} of {}\n\n{}\n", l.name, l.kind, l.origin, doc.trim());
    out.push_str(&fields(l.fields));
    out
}

/// The book's page of one kind of component, in Markdown.
pub fn page(kind: &str, all: &[Listing]) -> String {
    let mut title = format!("{kind}s");
    title[..1].make_ascii_uppercase();
    let title = title.replace("losss", "losses");
    let mut out = format!("# {title}\n\n| name | what it is |\n|---|---|\n");
    for l in all {
        let _ = writeln!(
            out,
            "| [`{0}`](#{1}) | {2} |",
            l.name,
            l.name.to_lowercase(),
            l.summary().trim().replace('|', "\\|")
        );
    }
    for l in all {
        let doc = l.doc.lines().map(|line| line.strip_prefix(' ').unwrap_or(line));
        // A page has the component's name as its heading: headings of the text go below it.
        let doc: Vec<String> =
            doc.map(|l| if l.starts_with("# ") { format!("##{l}") } else { l.to_string() }).collect();
        let _ = write!(out, "\n## {}\n\n{}\n", l.name, doc.join("\n").trim());
        if !l.fields.is_empty() {
            let _ = write!(out, "\n| field | default | meaning |\n|---|---|---|\n");
        }
        for f in l.fields {
            let default = f.default.map_or("required".to_string(), |d| format!("`{}`", d()));
            let doc = f.doc.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|");
            let _ = writeln!(out, "| `{}` | {default} | {doc} |", f.name);
        }
    }
    out
}

fn section(title: &str, doc: &str, list: &[Field]) -> String {
    format!("{title}\n\n{doc}\n{}", fields(list))
}

fn fields(list: &[Field]) -> String {
    if list.is_empty() {
        return "\nIt has no fields.\n".into();
    }
    let mut out = String::from("\nFields:\n");
    for f in list {
        let default = f.default.map_or("required".to_string(), |d| format!("default {}", d()));
        let doc = f.doc.split_whitespace().collect::<Vec<_>>().join(" ");
        let _ = writeln!(out, "  {}: {}\n      {doc} ({default})", f.name, f.ty);
    }
    out
}

/// Everything that follows from a recipe: resolved values, shapes, parameters, memory, chance levels, rates.
///
/// # Errors
/// If the network cannot be built.
pub fn plan<D: NetworkDevice>(device: &D, plan: &Plan) -> Result<String> {
    let network = plan.network(device)?;
    let r = &plan.recipe;
    let mut out = format!("{}\n", plan.resolved);
    let h = &plan.horizon;
    let _ = writeln!(out, "run        {}-{} seed {}", &*r.name, plan.hash, r.train.seed);
    let _ = writeln!(out, "data       {}", plan.splits.description);
    let shapes: Vec<_> = (0..plan.views.len()).map(|v| plan.views.shape(v)).collect();
    let groups = shapes.chunk_by(|a, b| a == b).map(|g| format!("{} of {}", g.len(), g[0]));
    let _ = writeln!(out, "views      {} per image", groups.collect::<Vec<_>>().join(" and "));
    let _ = writeln!(
        out,
        "length     {} epochs of {} steps of {} images = {} steps",
        r.train.epochs, h.steps_per_epoch, r.train.batch, h.total_steps
    );
    let _ = writeln!(
        out,
        "\n{:<34} {:>16} {:>12} {:>14}  algorithm",
        "layer", "output", "parameters", "multiply-adds"
    );
    let (mut parameters, mut operations, mut activations) = (0usize, 0u64, 0usize);
    for layer in network.layers() {
        let shape = layer.output.iter().map(usize::to_string).collect::<Vec<_>>().join("×");
        let (p, m) = (layer.parameters, layer.multiply_adds);
        let _ = writeln!(out, "{:<34} {shape:>16} {p:>12} {m:>14}  {}", layer.name, layer.algorithm);
        parameters += p;
        operations += m;
        activations += layer.output.iter().product::<usize>();
    }
    let copies = 3 + usize::from(r.momentum_encoder.is_some());
    let megabytes = |values: usize| values as f64 * 4.0 / 1e6;
    let _ = writeln!(out, "{:<34} {:>16} {parameters:>12} {operations:>14}", "sum", "");
    let _ = writeln!(
        out,
        "\nmemory     about {:.1} MB of parameters, gradients, momenta and copies; about {:.1} MB of activations",
        megabytes(parameters * copies),
        megabytes(activations * r.train.batch.get() * 2),
    );
    if let Some(c) = &r.clusterer {
        let k = c.prototypes().iter().map(|k| k.map_or("?".into(), |k| k.to_string())).collect::<Vec<_>>();
        let _ = writeln!(
            out,
            "prototypes {} from step {}, renewed after {}",
            k.join(" + "),
            plan.first_clustering,
            c.every()
        );
    }
    let _ = writeln!(
        out,
        "\n{:<18} {:>10} {:>10} {:>8} {:>8} {:>10} {:>10}",
        "term", "from step", "weight", "at end", "chance", "positives", "negatives"
    );
    for t in &plan.objective.terms {
        let start = Clock { step: t.from, horizon: *h };
        let chance = t.chance.map_or("–".into(), |c| format!("{c:.3}"));
        let contrast = t.term.info().contrast(&plan.facts);
        let count =
            |f: fn(pauc_traits::term::Contrast) -> usize| contrast.map_or("–".into(), |c| f(c).to_string());
        let _ = writeln!(
            out,
            "{:<18} {:>10} {:>10} {:>8} {chance:>8} {:>10} {:>10}",
            t.name,
            if t.from == u64::MAX { "never".into() } else { t.from.to_string() },
            format!("{:.4}", t.weight.at(&start)),
            format!("{:.4}", t.weight.settled(h)),
            count(|c| c.positives),
            count(|c| c.negatives),
        );
    }
    let optimizer = D::optimizer(&*r.optimizer.value);
    let _ = writeln!(out, "\nlearning rate");
    for i in 0..=10u64 {
        let step = (h.total_steps.saturating_sub(1)) * i / 10;
        let rate =
            optimizer.learning_rate(r.train.batch.get()) * r.schedule.factor_at(&Clock { step, horizon: *h });
        let bar =
            "#".repeat(
                (rate / optimizer.learning_rate(r.train.batch.get()).max(1e-300) * 40.0).round() as usize
            );
        let _ = writeln!(out, "  step {step:>7}  {rate:<10.6} {bar}");
    }
    Ok(out)
}
