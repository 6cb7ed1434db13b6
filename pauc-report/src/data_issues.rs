//! Images that make a run's numbers doubtful: copies across the splits, and labels that are likely wrong.

use crate::data::ReportData;
use crate::figure::{Figure, Section};
use crate::html::Table;
use crate::picture;
use crate::verdict::Condition;
use serde::{Deserialize, Serialize};

/// The file's path in the folder of a run.
pub const FILE: &str = "figures/data-issues.json";
/// The pictures of the near-duplicates: one row per pair, the test image first.
pub const LEAKS_SHEET: &str = "figures/leaks.png";
/// The pictures of the labels: one row per image, which is followed by its nearest.
pub const LABELS_SHEET: &str = "figures/wrong-labels.png";

/// What was found at the end of a run. Lists have the first entries only.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DataIssues {
    /// The number of images of both splits.
    pub images: u64,
    /// The largest number of images that are searched.
    pub most: u64,
    /// The number of test images.
    pub test: u64,
    /// The number of neighbors that vote on a label.
    pub neighbors: u64,
    /// The number of test images with a near-duplicate in the training split.
    pub leaked: u64,
    /// The number of those with equal pixels.
    pub equal: u64,
    /// Pairs of near-duplicates; those with equal pixels come first.
    pub leaks: Vec<Leak>,
    /// The share of images whose label is that of most neighbors; `None` without labels.
    pub agreement: Option<f64>,
    /// The agreement below which labels are not listed.
    pub least_agreement: f64,
    /// The number of images whose label is likely wrong.
    pub wrong: u64,
    /// Images whose label is likely wrong, with the largest shares first.
    pub wrong_labels: Vec<WrongLabel>,
}

/// A test image and a training image that are nearly the same.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Leak {
    /// The test image: its path within the dataset, or its number.
    pub test: String,
    /// The training image.
    pub train: String,
    /// The class of the test image.
    pub test_class: Option<String>,
    /// The class of the training image.
    pub train_class: Option<String>,
    /// The cosine of their features.
    pub cosine: f64,
    /// Whether all pixels are equal.
    pub equal: bool,
}

/// An image whose neighbors have another label.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct WrongLabel {
    /// The image: its path within the dataset, or its number.
    pub image: String,
    /// Whether it is a test image.
    pub test: bool,
    /// Its class.
    pub class: String,
    /// The class of most neighbors.
    pub neighbors: String,
    /// The share of neighbors that have that class.
    pub share: f64,
}

impl DataIssues {
    fn leaked_in_words(&self) -> String {
        let have = if self.leaked == 1 { "has" } else { "have" };
        format!("{} of {} test images {have} a near-duplicate in the training split", self.leaked, self.test)
    }

    /// Whether there were too many images to search.
    pub fn were_skipped(&self) -> bool {
        self.images > self.most
    }
}

/// Returns what the top of the report says: a warning if test images are in the training split.
pub(crate) fn condition(data: &ReportData) -> Option<Condition> {
    let found = data.data_issues.as_ref().filter(|d| d.leaked > 0)?;
    let equal = match found.equal {
        0 => String::new(),
        n => format!(", {n} of them with equal pixels"),
    };
    let sentence =
        format!("Test images leak: {}{equal}. Accuracies may be too high.", found.leaked_in_words());
    Some(Condition { sentence, well: false })
}

/// Returns the figures of both lists.
pub(crate) fn figures(data: &ReportData) -> Vec<Figure> {
    let Some(found) = &data.data_issues else { return Vec::new() };
    let sheet = |bytes: &Option<Vec<u8>>, name: &str, section, title: &str, note: &str| {
        let svg = picture::sheet(bytes.as_deref()?, title, note)?;
        Some(Figure { name: name.into(), section, svg })
    };
    let leaks = sheet(
        &data.leaks_sheet,
        "leaks",
        Section::Leaks,
        "Pairs of near-duplicates",
        "one pair per row, as in the table: test image, training image",
    );
    let labels = sheet(
        &data.labels_sheet,
        "wrong-labels",
        Section::Labels,
        "Images with likely wrong labels",
        "one image per row, as in the table, followed by its nearest",
    );
    // Pictures without a list are those of an earlier end of the run.
    let leaks = leaks.filter(|_| !found.leaks.is_empty());
    leaks.into_iter().chain(labels.filter(|_| !found.wrong_labels.is_empty())).collect()
}

/// Returns the table of near-duplicates and its note, if there are any.
pub(crate) fn leaks(found: &DataIssues) -> Option<(Table, String)> {
    if found.leaks.is_empty() {
        return None;
    }
    let class = |c: &Option<String>| c.clone().unwrap_or_else(|| "–".into());
    let row = |l: &Leak| {
        let pixels = if l.equal { "equal" } else { "nearly equal" };
        let cosine = format!("{:.4}", l.cosine);
        let (test, train) = (class(&l.test_class), class(&l.train_class));
        vec![l.test.clone(), l.train.clone(), pixels.to_string(), cosine, test, train]
    };
    let head = ["test image", "training image", "pixels", "cosine", "test class", "training class"];
    let head = head.map(str::to_string).to_vec();
    let listed = listed(found.leaks.len(), found.leaked);
    let note = format!("{}{listed}.", found.leaked_in_words());
    Some((Table { head, rows: found.leaks.iter().map(row).collect() }, note))
}

fn listed(shown: usize, of: u64) -> String {
    if (shown as u64) < of { format!("; these are {shown} of them") } else { String::new() }
}

/// Returns the table of likely wrong labels and its note, if there are any.
pub(crate) fn wrong_labels(found: &DataIssues) -> Option<(Table, String)> {
    if found.wrong_labels.is_empty() {
        return None;
    }
    let row = |w: &WrongLabel| {
        let split = if w.test { "test" } else { "train" };
        let share = format!("{:.0} %", 100.0 * w.share);
        vec![w.image.clone(), split.to_string(), w.class.clone(), w.neighbors.clone(), share]
    };
    let head = ["image", "split", "label", "label of its neighbors", "neighbors with it"];
    let head = head.map(str::to_string).to_vec();
    let note = format!(
        "{} with {} nearest images of which nearly all have one other label{}. The neighbors agree with {:.1} % of all \
         labels. Look at each: an unusual image may be labeled correctly.",
        if found.wrong == 1 { "1 image".into() } else { format!("{} images", found.wrong) },
        found.neighbors,
        listed(found.wrong_labels.len(), found.wrong),
        100.0 * found.agreement.unwrap_or(f64::NAN)
    );
    Some((Table { head, rows: found.wrong_labels.iter().map(row).collect() }, note))
}

/// Returns what was searched without a result, and what was not searched.
pub(crate) fn note(data: &ReportData) -> Option<String> {
    let found = data.data_issues.as_ref()?;
    if found.were_skipped() {
        return Some(format!(
            "Near-duplicates and labels were not checked: {} images are more than {}.",
            found.images, found.most
        ));
    }
    let mut parts = Vec::new();
    if found.test > 0 && found.leaked == 0 {
        parts.push("No test image has a near-duplicate in the training split.".to_string());
    }
    match found.agreement {
        Some(share) if share < found.least_agreement => parts.push(format!(
            "Labels were not checked: the neighbors agree with {:.1} % of them, and lists make sense from {:.0} %.",
            100.0 * share,
            100.0 * found.least_agreement
        )),
        Some(_) if found.wrong == 0 => parts.push("No label is likely wrong.".into()),
        _ => {}
    }
    (!parts.is_empty()).then(|| parts.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(issues: DataIssues) -> ReportData {
        ReportData { data_issues: Some(issues), ..ReportData::default() }
    }

    #[test]
    fn clean_unchecked_and_old_runs_say_so() {
        let clean = DataIssues {
            images: 90,
            most: 100,
            test: 30,
            agreement: Some(0.9),
            least_agreement: 0.8,
            ..DataIssues::default()
        };
        let said = |issues: &DataIssues| note(&data(issues.clone())).unwrap();
        assert_eq!(
            said(&clean),
            "No test image has a near-duplicate in the training split. No label is likely wrong."
        );
        assert!(
            condition(&data(clean.clone())).is_none()
                && leaks(&clean).is_none()
                && wrong_labels(&clean).is_none()
        );
        let poor = DataIssues { agreement: Some(0.5), ..clean.clone() };
        assert!(said(&poor).ends_with("Labels were not checked: the neighbors agree with 50.0 % of them, and lists make sense from 80 %."));
        let large = DataIssues { images: 101, ..clean };
        assert!(said(&large).starts_with("Near-duplicates and labels were not checked: 101 images"));
        assert_eq!((note(&ReportData::default()), condition(&ReportData::default())), (None, None));
    }

    #[test]
    fn leaks_and_wrong_labels_are_listed_with_their_names() {
        let leak = Leak {
            test: "a/<b>.png".into(),
            train: "c.png".into(),
            equal: true,
            cosine: 1.0,
            ..Leak::default()
        };
        let wrong = WrongLabel {
            image: "d.png".into(),
            test: true,
            class: "cat".into(),
            neighbors: "dog".into(),
            share: 0.95,
        };
        let found = DataIssues {
            images: 9,
            most: 100,
            test: 30,
            neighbors: 20,
            leaked: 2,
            leaks: vec![leak],
            agreement: Some(0.9),
            wrong: 1,
            wrong_labels: vec![wrong],
            ..DataIssues::default()
        };
        let (table, note) = leaks(&found).unwrap();
        assert_eq!(table.rows[0], ["a/<b>.png", "c.png", "equal", "1.0000", "–", "–"]);
        assert!(note.starts_with("2 of 30 test images") && note.contains("these are 1 of them"));
        assert_eq!(wrong_labels(&found).unwrap().0.rows[0], ["d.png", "test", "cat", "dog", "95 %"]);
        let page = crate::render(&data(found)).unwrap();
        assert!(page.contains("✗ Test images leak: 2 of 30 test images have a near-duplicate"));
        assert!(page.contains("&lt;b&gt;.png") && !page.contains("<b>.png"));
    }
}
