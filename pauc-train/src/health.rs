//! Signs that a run learns nothing: terms at their chance level, embeddings that collapse, prototypes without samples.

use crate::engine::{Engine, Observer};
use crate::objective::TermValue;
use pauc_data::Throughput;
use pauc_models::device::NetworkDevice;
use pauc_probes::rank::{rank_me, spread};
use pauc_report::events::{self, Event};
use pauc_report::verdict::{COLLAPSED, DEAD, EPOCHS_AT_CHANCE};
use pauc_traits::component_ron::Term;
use pauc_traits::probe::RowsView;
use pauc_traits::trace::Stage;
use pauc_traits::{Result, ops};

/// How far from its chance level a term's mean over an epoch may be and count as being there, relative to the level.
const AT_CHANCE: f64 = 0.01;

/// Whether a mean is no better than chance, in the direction of descent.
fn is_at_chance(mean: f64, chance: f64) -> bool {
    mean >= chance - AT_CHANCE * chance.abs().max(1.0)
}

impl<D: NetworkDevice> Engine<'_, D> {
    fn warn(&mut self, key: String, text: String, watch: &mut dyn Observer) -> Result<()> {
        if self.marks.first(&key) {
            watch.event(&Event::Warning(events::Warning { step: self.step(), text }))?;
        }
        Ok(())
    }

    /// Adds the terms of a step to the means of the epoch.
    pub(crate) fn count_terms(&mut self, terms: &[TermValue]) {
        for t in terms.iter().filter(|t| t.skipped.is_none() && t.value.is_finite()) {
            let sum = self.marks.terms.entry(t.name.clone()).or_default();
            sum.sum += t.value;
            sum.count += 1;
        }
    }

    /// After the last step of an epoch: the state of terms and embeddings, with warnings where nothing is learnt.
    pub(crate) fn health(&mut self, terms: &[TermValue], watch: &mut dyn Observer) -> Result<()> {
        let mut means = Vec::new();
        let mut stuck = Vec::new();
        for t in terms {
            let Some(sum) = self.marks.terms.get_mut(&t.name).filter(|s| s.count > 0) else { continue };
            let mean = sum.sum / sum.count as f64;
            let at_chance = t.weight > 0.0 && t.chance.is_some_and(|chance| is_at_chance(mean, chance));
            sum.at_chance = if at_chance { sum.at_chance + 1 } else { 0 };
            (sum.sum, sum.count) = (0.0, 0);
            let epochs_at_chance = sum.at_chance;
            // A regulariser may rightly stay where it is while the losses move.
            let learns =
                self.plan.objective.terms.iter().any(|p| p.name == t.name && matches!(p.term, Term::Loss(_)));
            if let Some(chance) = t.chance.filter(|_| learns && epochs_at_chance >= EPOCHS_AT_CHANCE) {
                let text = format!(
                    "{} has been at its chance level for {epochs_at_chance} epochs (mean {mean:.3}, chance {chance:.3}): it has \
                     taught the network nothing so far; try another learning rate or temperature, or a longer warm-up",
                    t.name
                );
                stuck.push((format!("chance {}", t.name), text));
            }
            means.push(events::TermMean {
                name: t.name.clone(),
                mean,
                chance: t.chance,
                epochs_at_chance,
                regulariser: !learns,
            });
        }
        for (key, text) in stuck {
            self.warn(key, text, watch)?;
        }
        let dim = self.network.embedding_dim();
        let first = self.trace.views.iter().flatten().next().map(ops::to_host).transpose()?;
        let rows = first.as_ref().map(|v| RowsView::new(v, dim));
        let (spread, rank) = match rows {
            Some(rows) => (spread(rows)?, rank_me(rows)?),
            None => (f64::NAN, f64::NAN),
        };
        if spread < COLLAPSED {
            let text = format!(
                "the embeddings collapse: their spread is {spread:.3}, where 1 is uniform on the sphere and 0 one point; \
                 lower the learning rate, or give uniformity or negatives more weight"
            );
            self.warn("collapse".into(), text, watch)?;
        }
        let (step, epoch) = (self.step(), self.epoch());
        watch.event(&Event::Health(events::Health { step, epoch, terms: means, spread, rank }))
    }

    /// After a clustering: prototypes that nothing belongs to.
    pub(crate) fn dead_prototypes(
        &mut self,
        levels: &[events::ClusterLevel],
        watch: &mut dyn Observer,
    ) -> Result<()> {
        for l in levels.iter().filter(|l| l.empty as f64 > DEAD * l.k as f64) {
            let text = format!(
                "{} of {} prototypes have no samples: fewer prototypes, or a clusterer that refills empty ones, such as \
                 KMeans, would serve",
                l.empty, l.k
            );
            self.warn(format!("dead {}", l.k), text, watch)?;
        }
        Ok(())
    }

    /// After the last step of an epoch: where its time went, and how much memory the process has needed.
    /// `loaded` is what the loader did meanwhile.
    pub(crate) fn stages(
        &mut self,
        (seconds, images): (f64, u64),
        loaded: Throughput,
        watch: &mut dyn Observer,
    ) -> Result<()> {
        let stages = std::mem::take(&mut self.stages);
        let inside: f64 = stages.iter().map(|s| s.time.as_secs_f64()).sum();
        let mut all: Vec<_> = stages
            .into_iter()
            .map(|s| events::StageTime { name: s.path, seconds: s.time.as_secs_f64() })
            .collect();
        all.push(events::StageTime { name: "other".into(), seconds: (seconds - inside).max(0.0) });
        watch.event(&Event::Stages(events::Stages {
            step: self.step(),
            epoch: self.epoch(),
            seconds,
            images_per_second: images as f64 / seconds.max(1e-9),
            stages: all,
            peak_memory_bytes: crate::bench::memory(),
            loader: Some(events::LoaderTime {
                images: loaded.images,
                read: loaded.read.as_secs_f64(),
                augment: loaded.augment.as_secs_f64(),
                normalise: loaded.normalise.as_secs_f64(),
            }),
        }))
    }

    /// Adds the stages of a stretch of steps to those of the epoch.
    pub(crate) fn add_stages(&mut self, stages: Vec<Stage>) {
        for new in stages {
            match self.stages.iter_mut().find(|s| s.path == new.path) {
                Some(s) => (s.calls, s.time) = (s.calls + new.calls, s.time + new.time),
                None => self.stages.push(new),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chance_is_a_level_to_get_below() {
        assert!(is_at_chance(7.62, 7.62) && is_at_chance(7.6, 7.62) && is_at_chance(9.0, 7.62));
        assert!(!is_at_chance(7.4, 7.62));
        // Levels below zero, as of uniformity: −3.9 is better than −3.5.
        assert!(!is_at_chance(-3.9, -3.5) && is_at_chance(-3.5, -3.5));
    }
}
