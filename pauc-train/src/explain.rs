//! The texts of `explain`: a component, a code, a whole recipe.

use crate::codes;
use crate::memory;
use crate::plan::Plan;
use crate::step_batch::syncs_statistics;
use pauc_models::device::NetworkDevice;
use pauc_models::network::Network;
use pauc_traits::component_ron::Term;
use pauc_traits::encoder::LayerDepths;
use pauc_traits::registry::{self, Field, Listing};
use pauc_traits::schedule::Clock;
use pauc_traits::term::{After, Contrast, Facts};
use pauc_traits::{Param, Result};
use std::fmt::Write;

/// Returns the text for a component, a section of recipes, or a code; `None` if the name is unknown.
pub fn name(what: &str) -> Option<String> {
    if let Some(code) = codes::find(what) {
        return Some(format!("{}: {}\n\n{}\n", code.code, code.title, code.text));
    }
    if what.eq_ignore_ascii_case("recipe") {
        return Some(section("Recipe", "A whole experiment.", crate::recipe::Recipe::FIELDS));
    }
    let found: Vec<Listing> =
        registry::catalog().into_iter().filter(|l| l.name.eq_ignore_ascii_case(what)).collect();
    (!found.is_empty()).then(|| found.iter().map(component).collect::<Vec<_>>().join("\n"))
}

/// Returns a name that is close to one that [`name`] does not know.
pub fn suggestion(what: &str) -> Option<&'static str> {
    registry::did_you_mean(what, registry::catalog().iter().map(|l| l.name))
}

/// Formats a component's page.
pub fn component(l: &Listing) -> String {
    let doc = l.doc.lines().map(|line| line.strip_prefix(' ').unwrap_or(line)).collect::<Vec<_>>().join("\n");
    let mut out = format!("{} — {} of {}\n\n{}\n", l.name, l.kind, l.origin, doc.trim());
    if let Some(facts) = term(l) {
        let _ = writeln!(out, "\n{}", facts.join("\n"));
    }
    out.push_str(&fields(l.fields));
    out
}

/// Returns whether a component of this kind is a term; terms have pages of their own in the book.
pub fn is_term(kind: &str) -> bool {
    ["contrastive loss", "regularizer"].contains(&kind)
}

/// Returns the sizes for the numbers on the pages of terms.
fn example() -> Facts {
    Facts {
        batch: 256,
        dim: 128,
        samples: 50_000,
        momentum: true,
        predictor: true,
        queue: Some(4096),
        prototypes: vec![Some(100)],
        classes: Some(10),
        relative_weight: 1.0,
    }
}

/// Lists what a term with its default settings reads, and its numbers in a run of common sizes; `None` if the
/// component is not a term, or has a setting without a default.
fn term(l: &Listing) -> Option<Vec<String>> {
    let term = Term::parse(&format!("{}()", l.name)).ok().filter(|_| is_term(l.kind))?;
    let (info, facts) = (term.info(), example());
    let needs = info.needs();
    let views = |what: &str, list: &[usize]| {
        let list: Vec<_> = list.iter().map(usize::to_string).collect();
        (!list.is_empty()).then(|| format!("{what} of view {}", list.join(" and ")))
    };
    let when = |holds: bool, what: &str| holds.then(|| what.to_string());
    let reads = [
        views("embeddings", needs.queries),
        views("predictions", needs.predictions),
        views("keys", needs.keys),
        when(needs.momentum, "a momentum encoder"),
        when(needs.queue, "the queue"),
        when(needs.prototypes, "the clusterer's prototypes"),
        when(needs.labels, "class labels"),
    ];
    let reads = reads.into_iter().flatten().collect::<Vec<_>>().join(", ");
    let mut lines = vec![
        format!("With its defaults it reads: {reads}."),
        match info.chance_level(&facts) {
            Some(chance) => format!(
                "Chance level: {chance:.3} with B = {}, D = {}, K = 100 and a queue of 4096.",
                facts.batch, facts.dim
            ),
            None => "Chance level: none.".to_string(),
        },
    ];
    if let Some(Contrast { positives, negatives }) = info.contrast(&facts) {
        lines.push(format!("Positives per query: {positives}. Negatives per query: {negatives}."));
    }
    for p in info.parameters(&facts) {
        let kept = if p.after == After::Remembered { "remembers" } else { "learns" };
        lines.push(format!("It {kept} `{}`, {} × {}.", p.name, p.rows, p.cols));
    }
    Some(lines)
}

/// Returns the title of a kind's page in the book.
pub fn title(kind: &str) -> String {
    let mut title = registry::plural(kind).to_string();
    title[..1].make_ascii_uppercase();
    title
}

/// Formats the book's page of one kind of component in Markdown: all of them, or for terms a table of links.
pub fn page(kind: &str, all: &[Listing]) -> String {
    let mut out = format!("# {}\n\n| name | what it is |\n|---|---|\n", title(kind));
    for l in all {
        let place = if is_term(kind) {
            format!("../terms/{}.md", l.name)
        } else {
            format!("#{}", l.name.to_lowercase())
        };
        let _ = writeln!(out, "| [`{}`]({place}) | {} |", l.name, l.summary().trim().replace('|', "\\|"));
    }
    for l in all.iter().filter(|_| !is_term(kind)) {
        let _ = write!(out, "\n## {}\n\n{}", l.name, body(l, "##"));
    }
    out
}

/// Formats the book's page of one term in Markdown.
pub fn term_page(l: &Listing) -> String {
    format!("# {}\n\nA {} of `{}`.\n\n{}", l.name, l.kind, l.origin, body(l, "#"))
}

/// Formats a component's text and table of fields. `below` is put before its headings, to nest them.
fn body(l: &Listing, below: &str) -> String {
    let doc = l.doc.lines().map(|line| line.strip_prefix(' ').unwrap_or(line));
    let doc: Vec<String> =
        doc.map(|l| if l.starts_with("# ") { format!("{below}{l}") } else { l.to_string() }).collect();
    let mut out = format!("{}\n", doc.join("\n").trim());
    if let Some(facts) = term(l) {
        let _ = write!(out, "\n## In numbers\n\n{}\n", facts.join("\n"));
    }
    if !l.fields.is_empty() {
        let _ = write!(out, "\n| field | default | meaning |\n|---|---|---|\n");
    }
    for f in l.fields {
        let default = f.default.map_or("required".to_string(), |d| format!("`{}`", d()));
        let doc = f.doc.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|");
        let _ = writeln!(out, "| `{}` | {default} | {doc} |", f.name);
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
        let _ = writeln!(out, "  {}: {}\n      {doc} ({default})", f.name, f.type_name());
    }
    out
}

/// Formats everything that follows from a recipe: resolved values, shapes, parameters, memory, chance levels,
/// rates.
///
/// # Errors
/// If the network cannot be built.
pub fn plan<D: NetworkDevice>(device: &D, plan: &Plan) -> Result<String> {
    let mut network = plan.network(device)?;
    let mut out = format!("{}\n", plan.resolved);
    data_and_length(&mut out, plan);
    shards(&mut out, plan, &mut network);
    filled(&mut out, plan);
    layers(&mut out, &network);
    memory(&mut out, device, plan, &network);
    prototypes(&mut out, plan);
    terms(&mut out, plan);
    learning_rates(&mut out, plan, &network);
    Ok(out)
}

fn data_and_length(out: &mut String, plan: &Plan) {
    let (r, h) = (&plan.recipe, &plan.horizon);
    let _ = writeln!(out, "run        {}-{} seed {}", &*r.name, plan.hash, r.train.seed);
    let _ = writeln!(out, "data       {}", plan.splits.description);
    let shapes: Vec<_> = (0..plan.views.len()).map(|v| plan.views.shape(v)).collect();
    let groups = shapes.chunk_by(|a, b| a == b).map(|g| format!("{} of {}", g.len(), g[0]));
    let _ = writeln!(out, "views      {} per image", groups.collect::<Vec<_>>().join(" and "));
    let images = match r.train.accumulate.get() {
        1 => r.train.batch.to_string(),
        k => format!("{k} × {}", r.train.batch),
    };
    let _ = writeln!(
        out,
        "length     {} epochs of {} steps of {images} images = {} steps",
        r.train.epochs, h.steps_per_epoch, h.total_steps
    );
}

/// Describes the shards of a batch, if there are several.
fn shards<D: NetworkDevice>(out: &mut String, plan: &Plan, network: &mut Network<D>) {
    let (count, images) = (plan.recipe.train.shards.get(), plan.recipe.train.shard());
    if count == 1 {
        return;
    }
    let synced = syncs_statistics(plan, network);
    let kept = if synced || plan.keeps_shards && network.has_passes(count) {
        "the activations of all are kept for the backward pass"
    } else {
        "their activations are computed twice, to save memory"
    };
    let _ = writeln!(out, "shards     {count} of {images} images; {kept}");
    if synced {
        let _ = writeln!(out, "{:<10} batch normalization takes its statistics over all of them", "");
    } else if plan.recipe.momentum_encoder.is_some() && !network.followed_statistics().is_empty() {
        let _ = writeln!(out, "{:<10} those of the momentum encoder are of a random order of the batch", "");
    }
}

/// Lists what the recipe leaves out and its data decided.
fn filled(out: &mut String, plan: &Plan) {
    for (i, filled) in plan.filled.iter().enumerate() {
        let heading = if i == 0 { "defaults" } else { "" };
        let _ = writeln!(out, "{heading:<10} {}: {}, {}", filled.field, filled.value, filled.why);
    }
}

/// Formats the table of layers.
fn layers<D: NetworkDevice>(out: &mut String, network: &Network<D>) {
    let _ = writeln!(
        out,
        "\n{:<34} {:>16} {:>12} {:>14}  algorithm",
        "layer", "output", "parameters", "multiply-adds"
    );
    let (mut parameters, mut operations) = (0usize, 0u64);
    for layer in network.layers() {
        let shape = layer.output.iter().map(usize::to_string).collect::<Vec<_>>().join("×");
        let (p, m) = (layer.parameters, layer.multiply_adds);
        let _ = writeln!(out, "{:<34} {shape:>16} {p:>12} {m:>14}  {}", layer.name, layer.algorithm);
        parameters += p;
        operations += m;
    }
    let _ = writeln!(out, "{:<34} {:>16} {parameters:>12} {operations:>14}", "sum", "");
}

/// Formats the table of memory.
fn memory<D: NetworkDevice>(out: &mut String, device: &D, plan: &Plan, network: &Network<D>) {
    let r = &plan.recipe;
    let _ = writeln!(out, "\nmemory     at least {}", memory::bytes(memory::total(&plan.memory)));
    for part in &plan.memory {
        let _ = writeln!(out, "{:>21}  {}", memory::bytes(part.bytes), part.what);
    }
    if let Some(planned) = network.encoder_memory(r.train.micro_batch.unwrap_or(r.train.batch).get() * 2) {
        let _ = writeln!(
            out,
            "{:<10} {:.1} MB planned for the encoder's feature maps and gradients, two views of a batch",
            device.name(),
            planned as f64 / 1e6,
        );
    }
}

fn prototypes(out: &mut String, plan: &Plan) {
    if let Some(c) = &plan.recipe.clusterer {
        let k = c.prototypes().iter().map(|k| k.map_or("?".into(), |k| k.to_string())).collect::<Vec<_>>();
        let _ = writeln!(
            out,
            "prototypes {} from step {}, renewed after {}",
            k.join(" + "),
            plan.first_clustering,
            c.every()
        );
    }
}

/// Formats the table of terms: start, weight, chance level, positives and negatives.
fn terms(out: &mut String, plan: &Plan) {
    let h = &plan.horizon;
    let _ = writeln!(
        out,
        "\n{:<18} {:>10} {:>10} {:>8} {:>8} {:>10} {:>10}",
        "term", "from step", "weight", "at end", "chance", "positives", "negatives"
    );
    for t in &plan.objective.terms {
        let start = Clock { step: t.from, horizon: *h };
        let chance = t.chance.map_or("–".into(), |c| format!("{c:.3}"));
        let contrast = t.term.info().contrast(&plan.facts);
        let count = |f: fn(Contrast) -> usize| contrast.map_or("–".into(), |c| f(c).to_string());
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
}

/// Draws the learning rate at eleven steps, as bars.
fn learning_rates<D: NetworkDevice>(out: &mut String, plan: &Plan, network: &Network<D>) {
    let (r, h) = (&plan.recipe, &plan.horizon);
    let optimizer = D::optimizer(&*r.optimizer.value);
    let _ = writeln!(out, "\nlearning rate");
    let base = optimizer.learning_rate(r.train.images_per_step());
    for i in 0..=10u64 {
        let step = (h.total_steps.saturating_sub(1)) * i / 10;
        let rate = base * r.schedule.factor_at(&Clock { step, horizon: *h });
        let bar = "#".repeat((rate / base.max(1e-300) * 40.0).round() as usize);
        let _ = writeln!(out, "  step {step:>7}  {rate:<10.6} {bar}");
    }
    for scale in &r.lr_scale {
        let _ = writeln!(out, "  of {} times {}", scale.part, scale.factor.get());
    }
    if let Some(depths) = network.encoder_depths().filter(|_| r.layer_decay.get() != 1.0) {
        layer_rates(out, &depths, &network.encoder_parameters(), r.layer_decay.get());
    }
}

/// Lists the parameters of the encoder at each depth, with the factor on their learning rate.
fn layer_rates<D: NetworkDevice>(out: &mut String, depths: &LayerDepths, params: &[Param<D>], decay: f64) {
    let factors = depths.factors(decay);
    for depth in 0..depths.groups {
        let at = || (0..params.len()).filter(|i| depths.of.get(*i) == Some(&depth));
        let Some(first) = at().next() else { continue };
        let (name, others) = (&params[first].name, at().count() - 1);
        let others = if others > 0 { format!(" and {others} more") } else { String::new() };
        let _ = writeln!(out, "  of layer {depth} (encoder.{name}{others}) times {:.6}", factors[first]);
    }
}
