//! What an atlas shows: the vectors of images, and what is known about the images.

use super::sample::evenly;
use crate::embed::{Samples, Vectors};
use crate::evaluate;
use crate::neighbors::{self, Rows};
use crate::prototypes;
use crate::saved_run::{self, Part, SavedRun};
use crate::state::TrainState;
use pauc_data::datasets::subset::Picked;
use pauc_data::sprites::Place;
use pauc_models::device::NetworkDevice;
use pauc_traits::dataset::{ImageSource, Splits};
use pauc_traits::probe::RowsView;
use pauc_traits::{Clustering, Error, Result};
use std::path::Path;
use std::sync::Arc;

/// The images of an atlas.
#[derive(Clone, Debug, Default)]
pub struct Subject {
    /// Where they come from, for errors.
    pub origin: String,
    /// The title of the page.
    pub title: String,
    /// Words and values under the title.
    pub facts: Vec<(String, String)>,
    /// Remarks.
    pub notes: Vec<String>,
    /// One vector per image, row-major.
    pub vectors: Vec<f32>,
    /// The length of a vector.
    pub dim: usize,
    /// The number of each image in its split or file.
    pub ids: Vec<u32>,
    /// The names of the images.
    pub names: Option<Vec<String>>,
    /// The class of each image.
    pub labels: Option<Vec<Option<u32>>>,
    /// The names of the classes.
    pub classes: Vec<String>,
    /// The split of each image as an index into names, if they are of several.
    pub splits: Option<(Vec<u8>, Vec<String>)>,
    /// The prototype of each image, and the concentrations.
    pub prototypes: Option<Assigned>,
    /// The images.
    pub images: Option<Vec<Place>>,
}

/// The prototypes of images.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Assigned {
    /// The prototype of each image.
    pub of: Vec<u32>,
    /// The concentration of each prototype.
    pub concentrations: Vec<f32>,
}

/// What to draw of a run.
#[derive(Clone, Debug)]
pub struct RunJob<'a> {
    /// The splits.
    pub parts: &'a [Part],
    /// Whether the momentum encoder is used.
    pub momentum: bool,
    /// The vectors.
    pub vectors: Vectors,
    /// The largest number of images.
    pub limit: usize,
}

impl Subject {
    /// Returns the name of an image, or its number.
    pub fn name(&self, row: usize) -> String {
        self.names.as_ref().map_or_else(|| format!("image {}", self.ids[row]), |names| names[row].clone())
    }

    /// Embeds images of a run, and finds their prototypes: those of the coarsest level of its checkpoint.
    ///
    /// # Errors
    /// If the data has no such split, the checkpoint does not belong to the run, an image cannot be read, or the device
    /// fails.
    pub fn of_run<D: NetworkDevice>(device: &D, saved: &SavedRun, job: &RunJob<'_>) -> Result<Subject> {
        let mut state = saved.state(device)?;
        let coarsest = coarsest(&state);
        let plan = &saved.plan;
        let sources = job.parts.iter().map(|part| saved.source(*part)).collect::<Result<Vec<_>>>()?;
        let total: usize = sources.iter().map(|source| source.len()).sum();
        let mut subject = Subject {
            origin: plan.splits.description.clone(),
            title: plan.recipe.name.to_string(),
            facts: facts_of(saved, state.step, job),
            classes: plan.splits.classes.clone(),
            ..Subject::default()
        };
        let mut assigned = Vec::new();
        let mut places = Vec::new();
        let mut splits = Vec::new();
        for (number, (part, source)) in job.parts.iter().zip(&sources).enumerate() {
            let limit = share_of(source.len(), total, job.limit);
            let chosen = evenly(&groups(*part, &***source, coarsest.as_ref().map(|(level, _)| level)), limit);
            let picked: Arc<dyn ImageSource> = Arc::new(Picked::new((*source).clone(), chosen.clone()));
            let network = saved_run::branch(&mut state, job.momentum)?;
            let embedded = evaluate::embed(network, &plan.evaluation, &picked)?;
            assigned.extend(
                coarsest.iter().flat_map(|(level, _)| prototypes::nearest(level, embedded.embedding_rows())),
            );
            subject.add(&Samples::of(&*picked), &chosen);
            places.extend(chosen.iter().map(|index| ((*source).clone(), *index)));
            splits.extend(chosen.iter().map(|_| number as u8));
            let (vectors, dim) = match job.vectors {
                Vectors::Features => (embedded.features, embedded.feature_dim),
                Vectors::Embeddings => (embedded.embeddings, embedded.dim),
            };
            subject.vectors.extend(vectors);
            subject.dim = dim;
        }
        subject.images = Some(places);
        let names = job.parts.iter().map(|part| part.name().to_string()).collect();
        subject.splits = (job.parts.len() > 1).then_some((splits, names));
        subject.prototypes = coarsest.map(|(_, concentrations)| Assigned { of: assigned, concentrations });
        subject.notes.extend(sampled(subject.ids.len(), total, subject.prototypes.is_some()));
        Ok(subject)
    }

    /// Adds what is known about the chosen images of a split.
    fn add(&mut self, samples: &Samples, chosen: &[usize]) {
        let is_first = self.ids.is_empty();
        self.ids.extend(chosen.iter().map(|index| *index as u32));
        self.names = match (self.names.take(), &samples.names) {
            (None, part) if is_first => part.clone(),
            (Some(all), Some(part)) => Some([all, part.clone()].concat()),
            // If one split has no names, none have.
            _ => None,
        };
        let labels = samples.labels.as_ref().map(|labels| labels.iter().map(|label| Some(*label)));
        match (&mut self.labels, labels) {
            (None, Some(labels)) => {
                let before = self.ids.len() - chosen.len();
                self.labels = Some(std::iter::repeat_n(None, before).chain(labels).collect());
            }
            (Some(all), Some(labels)) => all.extend(labels),
            (Some(all), None) => all.extend(chosen.iter().map(|_| None)),
            (None, None) => {}
        }
    }

    /// Reads the vectors of a file, with `data` for its images and the names of its classes.
    ///
    /// # Errors
    /// If the file is missing or damaged, a value is NaN or infinite, or the images are not those of the file.
    pub fn of_file(
        path: &Path,
        tensor: Option<&str>,
        data: Option<&Splits>,
        limit: usize,
    ) -> Result<Subject> {
        let (matrix, rows) = Rows::open(path, tensor)?;
        let all = matrix.rows();
        let labels: Option<Vec<Option<u32>>> = rows
            .samples
            .labels
            .as_ref()
            .map(|labels| labels.iter().map(|label| u32::try_from(*label).ok()).collect());
        let groups = labels.clone().unwrap_or_else(|| vec![None; rows.count]);
        let chosen = evenly(&groups, limit);
        let vectors: Vec<f32> = chosen.iter().flat_map(|row| all.row(*row)).copied().collect();
        finite(path, &vectors, all.cols, &chosen)?;
        let images = data.map(|data| places(&rows, data, &chosen)).transpose()?;
        let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let mut facts = vec![("dimensions".to_string(), all.cols.to_string())];
        facts.extend(data.map(|data| ("data".to_string(), data.description.clone())));
        facts.extend(rows.samples.split.clone().map(|split| ("split".to_string(), split)));
        let id = |row: &usize| u32::try_from(rows.row(*row).id).unwrap_or(*row as u32);
        Ok(Subject {
            origin: path.display().to_string(),
            title: name,
            facts,
            notes: sampled(chosen.len(), rows.count, false).into_iter().collect(),
            dim: all.cols,
            vectors,
            ids: chosen.iter().map(id).collect(),
            names: rows
                .samples
                .names
                .as_ref()
                .map(|names| chosen.iter().map(|row| names[*row].clone()).collect()),
            labels: labels.map(|labels| chosen.iter().map(|row| labels[*row]).collect()),
            classes: data.map(|data| data.classes.clone()).unwrap_or_default(),
            splits: None,
            prototypes: None,
            images,
        })
    }
}

/// Returns the coarsest level of the prototypes, with its concentrations.
fn coarsest<D: NetworkDevice>(state: &TrainState<D>) -> Option<(Clustering, Vec<f32>)> {
    let prototypes = state.prototypes.as_ref()?;
    let levels = prototypes.clusterings.iter().zip(&prototypes.concentrations);
    levels.min_by_key(|(level, _)| level.k).map(|(level, phi)| (level.clone(), phi.clone()))
}

fn facts_of(saved: &SavedRun, step: u64, job: &RunJob<'_>) -> Vec<(String, String)> {
    let vectors = match job.vectors {
        Vectors::Features => "features",
        Vectors::Embeddings => "embeddings",
    };
    let network = if job.momentum { "momentum encoder" } else { "encoder" };
    let parts: Vec<&str> = job.parts.iter().map(|part| part.name()).collect();
    let facts = [
        ("data", saved.plan.splits.description.clone()),
        ("split", parts.join(" and ")),
        ("vectors", format!("{vectors} of the {network}")),
        ("step", step.to_string()),
        ("seed", saved.plan.recipe.train.seed.to_string()),
    ];
    facts.map(|(word, value)| (word.to_string(), value)).to_vec()
}

/// Returns the share of a split of `len` images of `total` in `limit`, at least 1.
fn share_of(len: usize, total: usize, limit: usize) -> usize {
    if total <= limit { len } else { (len as u128 * limit as u128 / total as u128).max(1) as usize }
}

/// Returns the groups that a split is sampled from: prototypes that the checkpoint has, or classes.
fn groups(part: Part, source: &dyn ImageSource, level: Option<&Clustering>) -> Vec<Option<u32>> {
    let assigned = level.filter(|level| part == Part::Train && level.assignments.len() == source.len());
    match (assigned, source.labels()) {
        (Some(level), _) => level.assignments.clone(),
        (None, Some(labels)) => labels.iter().map(|label| Some(*label)).collect(),
        (None, None) => vec![None; source.len()],
    }
}

/// Returns a remark if not all images are drawn.
fn sampled(count: usize, total: usize, by_prototype: bool) -> Option<String> {
    let how = if by_prototype { "evenly by prototype" } else { "evenly by class" };
    (count < total).then(|| {
        format!("These are {count} of {total} images, chosen {how}; nearest images and lists are among them.")
    })
}

/// Returns the images of chosen rows, and checks that they have the rows' names.
fn places(rows: &Rows, data: &Splits, chosen: &[usize]) -> Result<Vec<Place>> {
    let images = neighbors::images(rows, data)?;
    let place = |row: &usize| Ok((images.clone(), neighbors::index_of(&**images, rows, *row)?));
    chosen.iter().map(place).collect()
}

/// Checks that the vectors are finite; `chosen` are their rows in the file.
fn finite(path: &Path, vectors: &[f32], dim: usize, chosen: &[usize]) -> Result<()> {
    let rows = RowsView::new(vectors, dim);
    match rows.iter().position(|row| row.iter().any(|v| !v.is_finite())) {
        Some(at) => Err(Error::damaged(path, format!("holds NaN or infinity: row {}", chosen[at]))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_split_lacks_stays_unknown() {
        let some = |labels: Option<Vec<u32>>, names: Option<[&str; 2]>| Samples {
            labels,
            names: names.map(|names| names.map(str::to_string).to_vec()),
        };
        let mut subject = Subject::default();
        subject.add(&some(None, Some(["a", "b"])), &[4, 9]);
        assert_eq!((subject.name(1), subject.labels.clone()), ("b".into(), None));
        subject.add(&some(Some(vec![2, 0]), Some(["c", "d"])), &[0, 1]);
        assert_eq!(subject.ids, [4, 9, 0, 1]);
        assert_eq!(subject.labels, Some(vec![None, None, Some(2), Some(0)]));
        assert_eq!(subject.name(3), "d");
        subject.add(&some(None, None), &[5, 6]);
        assert_eq!((subject.name(4), subject.labels.unwrap()[4]), ("image 5".into(), None));
    }

    #[test]
    fn splits_share_the_limit_by_their_size() {
        assert_eq!(
            (share_of(50, 60, 100), share_of(50_000, 60_000, 600), share_of(1, 1_000_000, 10)),
            (50, 500, 1)
        );
        assert!(sampled(5, 9, true).unwrap().contains("5 of 9 images, chosen evenly by prototype"));
        assert_eq!(sampled(9, 9, true), None);
    }

    #[test]
    fn errors_name_the_row_of_the_file() {
        let error = finite(Path::new("x.npy"), &[1.0, 2.0, f32::NAN, 0.0], 2, &[3, 17]).unwrap_err();
        assert!(error.to_string().contains("x.npy") && error.to_string().ends_with("row 17"), "{error}");
    }
}
