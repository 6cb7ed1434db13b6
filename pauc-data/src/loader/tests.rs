use super::*;
use crate::MemoryImages;
use pauc_testing::{assert_within, tolerance};
use pauc_traits::component_ron::options;
use pauc_traits::{Image, ImageShape};

const SHAPE: ImageShape = ImageShape { height: 6, width: 6, channels: 3 };
const VIEWS: &str = "[(count: 2, ops: [RandomResizedCrop(size: 4), HorizontalFlip(), ColorJitter(), GaussianBlur()]), \
                     (count: 1, ops: [])]";

fn images(count: usize) -> MemoryImages {
    let pixels = (0..count * SHAPE.len()).map(|i| (i * 7919 % 251) as u8).collect();
    MemoryImages::new(SHAPE, pixels, Some((0..count as u32).map(|i| i % 3).collect())).unwrap()
}

fn pipeline(text: &str) -> ViewPipeline {
    let specs: Vec<crate::ViewSpec> = options().from_str(text).unwrap();
    ViewPipeline::training(&specs, Some(SHAPE), &[(0.5, 0.25); 3]).unwrap()
}

fn loader(count: usize, batch: usize, order: Order, threads: usize, prefetch: usize) -> Loader {
    let options = LoaderOptions {
        batch: Count::try_from(batch).unwrap(),
        seed: 3,
        order,
        threads,
        prefetch,
        bytes: false,
    };
    Loader::new(Arc::new(images(count)), pipeline(VIEWS), options).unwrap()
}

fn all(batches: Batches) -> Vec<ImageBatch> {
    batches.map(|b| b.unwrap()).collect()
}

#[test]
fn batches_do_not_depend_on_the_number_of_threads() {
    let reference = all(loader(23, 4, Order::Shuffled, 0, 1).batches(2..14));
    assert_eq!(reference.len(), 12);
    for (threads, prefetch) in [(1, 1), (1, 3), (2, 1), (4, 8), (7, 2)] {
        assert!(
            all(loader(23, 4, Order::Shuffled, threads, prefetch).batches(2..14)) == reference,
            "{threads}"
        );
    }
    let places: Vec<_> = reference.iter().map(|b| (b.epoch, b.step)).collect();
    assert_eq!(places[..4], [(0, 2), (0, 3), (0, 4), (1, 0)], "23 images are 5 steps of 4 each");
}

#[test]
fn a_share_has_the_pixels_of_its_samples_only() {
    let whole = all(loader(23, 4, Order::Shuffled, 0, 1).batches(3..9));
    // Another share in every step: one sample of the first view, two of the second, none of the third.
    let share = |step: u64| vec![vec![step as usize % 4], vec![0, 3], vec![]];
    let options = LoaderOptions { seed: 3, ..LoaderOptions::training(Count::lit(4), 3) };
    let loader =
        Loader::of_share(Arc::new(images(23)), pipeline(VIEWS), options, Some(Arc::new(share))).unwrap();
    let shares = all(loader.batches(3..9));
    for (step, (batch, whole)) in (3..).zip(shares.iter().zip(&whole)) {
        assert_eq!((batch.epoch, batch.step, &batch.ids), (whole.epoch, whole.step, &whole.ids));
        assert_eq!(batch.labels, whole.labels);
        for (view, samples) in share(step).iter().enumerate() {
            let size = loader.pipeline().shape(view).len();
            assert_eq!(batch.views[view], whole.views[view].selected(samples, size));
            assert_eq!(batch.positions(view, samples), Some((0..samples.len()).collect()));
        }
        assert_eq!(batch.positions(1, &[3]), Some(vec![1]));
        assert_eq!(batch.positions(1, &[1]), None);
        assert_eq!(whole.positions(1, &[1]), Some(vec![1]));
        // The second half of the batch.
        let half = batch.rows(&(2..4));
        assert_eq!(half.views[1], whole.views[1].selected(&[3], loader.pipeline().shape(1).len()));
        assert_eq!(half.positions(1, &[1]), Some(vec![0]));
        assert_eq!(half.positions(1, &[0]), None);
    }
}

#[test]
fn an_epoch_can_be_resumed_at_any_step() {
    let loader = loader(23, 4, Order::Shuffled, 2, 2);
    let epoch = all(loader.epoch(1, 0));
    assert_eq!(all(loader.epoch(1, 3)), epoch[3..]);
    assert_eq!(loader.epoch(1, 5).count(), 0);
    assert_eq!(loader.epoch(1, 2).len(), 3);
}

#[test]
fn training_epochs_are_permutations_that_differ() {
    let loader = loader(23, 4, Order::Shuffled, 1, 2);
    let (first, second) = (loader.order(0), loader.order(1));
    assert_ne!(first, second);
    for order in [&first, &second] {
        let mut sorted = order.to_vec();
        sorted.sort_unstable();
        assert!(sorted.iter().copied().eq(0..23));
    }
    let ids: Vec<u64> = all(loader.epoch(0, 0)).into_iter().flat_map(|b| b.ids).collect();
    assert!(ids.iter().copied().eq(first.iter().take(20).map(|i| u64::from(*i))));
}

#[test]
fn every_order_is_equally_likely() {
    // The position of sample 0 over many epochs.
    let loader = loader(6, 2, Order::Shuffled, 0, 1);
    let (mut places, epochs) = ([0; 6], 15_000);
    for epoch in 0..epochs {
        places[loader.order(epoch).iter().position(|i| *i == 0).unwrap()] += 1;
    }
    for count in places {
        let share = f64::from(count) / epochs as f64;
        assert_within!(share, 1.0 / 6.0, tolerance::frequency(1.0 / 6.0, epochs as usize), "{places:?}");
    }
}

#[test]
fn evaluation_sees_every_image_once_in_order() {
    let loader = loader(10, 4, Order::Sequential, 2, 2);
    let batches = all(loader.epoch(0, 0));
    assert_eq!(batches.iter().map(|b| b.ids.len()).collect::<Vec<_>>(), [4, 4, 2]);
    assert!(batches.iter().flat_map(|b| b.ids.clone()).eq(0..10));
    assert_eq!(batches[1].labels.as_deref(), Some(&[1, 2, 0, 1][..]));
    let plain = batches[1].views[2].numbers(0..4 * SHAPE.len());
    let images = images(10);
    let pixels = images.image(4).unwrap();
    assert!(plain.len() >= pixels.pixels.len());
    for (got, pixel) in plain.iter().zip(&*pixels.pixels) {
        let value = f64::from(*pixel) / 255.0;
        // 255·deviation, its inverse, the product and the sum.
        assert_within!(*got, (value - 0.5) / 0.25, tolerance::f32(4, (value + 0.5) / 0.25));
    }
}

#[test]
fn views_depend_on_sample_epoch_and_view_only() {
    let loader = loader(23, 4, Order::Shuffled, 0, 1);
    let a = loader.batch(2, &[5, 9]).unwrap();
    let b = loader.batch(2, &[9]).unwrap();
    assert_eq!(a.views[0].part(48..96), b.views[0]);
    assert_ne!(b.views[0], b.views[1]);
    assert_ne!(b.views[0], loader.batch(3, &[9]).unwrap().views[0]);
}

#[test]
fn bytes_normalize_to_the_same_numbers() {
    let plain = loader(9, 4, Order::Shuffled, 0, 1);
    let options = LoaderOptions { seed: 3, ..LoaderOptions::training(Count::lit(4), 3) }.for_accelerator();
    let bytes = Loader::new(Arc::new(images(9)), pipeline(VIEWS), options).unwrap();
    for (a, b) in all(plain.epoch(1, 0)).iter().zip(all(bytes.epoch(1, 0))) {
        assert_eq!(a.ids, b.ids);
        for (a, b) in a.views.iter().zip(&b.views) {
            assert!(matches!(b, Pixels::Bytes { .. }));
            assert_eq!(a.numbers(0..a.len()), b.numbers(0..b.len()));
        }
    }
}

#[test]
fn errors_name_an_image_of_another_shape() {
    let other = ImageShape { height: 5, ..SHAPE };
    let source = MemoryImages::new(other, vec![0; 2 * other.len()], None).unwrap();
    let options = LoaderOptions::evaluation(Count::lit(1));
    let loader = Loader::new(Arc::new(source), pipeline("[(count: 1, ops: [])]"), options).unwrap();
    let text = loader.epoch(0, 1).next().unwrap().unwrap_err().to_string();
    assert!(text.starts_with("image 1, view 0: the image has the shape 5×6×3"), "{text}");
}

/// Fails or panics at one image.
struct Broken(MemoryImages, bool);

impl ImageSource for Broken {
    fn len(&self) -> usize {
        self.0.len()
    }
    fn shape(&self) -> Option<ImageShape> {
        self.0.shape()
    }
    fn image(&self, index: usize) -> Result<Image<'_>> {
        match index {
            7 if self.1 => panic!("no image {index}"),
            7 => Err(Error::damaged("7.jpg", "is not an image")),
            _ => self.0.image(index),
        }
    }
    fn labels(&self) -> Option<&[u32]> {
        None
    }
}

#[test]
fn errors_and_panics_are_returned_at_their_step() {
    for (panics, expected) in
        [(false, "7.jpg: is not an image"), (true, "panicked in step 1 of epoch 0: no image 7")]
    {
        for threads in [0, 2] {
            let options = LoaderOptions { threads, ..LoaderOptions::evaluation(Count::lit(4)) };
            let source = Arc::new(Broken(images(10), panics));
            let loader = Loader::new(source, pipeline(VIEWS), options).unwrap();
            let results: Vec<_> = loader.epoch(0, 0).collect();
            assert!(results[0].is_ok() && results[2].is_ok());
            assert!(results[1].as_ref().unwrap_err().to_string().contains(expected));
        }
    }
}

#[test]
fn preparation_stays_bounded_and_stops_when_dropped() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    struct Counting(MemoryImages, Arc<AtomicUsize>);
    impl ImageSource for Counting {
        fn len(&self) -> usize {
            self.0.len()
        }
        fn shape(&self) -> Option<ImageShape> {
            self.0.shape()
        }
        fn image(&self, index: usize) -> Result<Image<'_>> {
            self.1.fetch_add(1, Ordering::SeqCst);
            self.0.image(index)
        }
        fn labels(&self) -> Option<&[u32]> {
            None
        }
    }
    let count = Arc::new(AtomicUsize::new(0));
    let options = LoaderOptions { threads: 3, prefetch: 2, ..LoaderOptions::evaluation(Count::lit(1)) };
    let source = Arc::new(Counting(images(1000), count.clone()));
    let mut batches = Loader::new(source, pipeline(VIEWS), options).unwrap().epoch(0, 0);
    (0..10).for_each(|_| assert!(batches.next().unwrap().is_ok()));
    drop(batches);
    // 10 returned, and at most 2 prepared in advance.
    assert!((10..=12).contains(&count.load(Ordering::SeqCst)), "{count:?}");
}

#[test]
fn a_batch_larger_than_the_training_set_is_refused() {
    let options = LoaderOptions::training(Count::lit(11), 0);
    let text = Loader::new(Arc::new(images(10)), pipeline(VIEWS), options).err().unwrap().to_string();
    assert!(text.contains("11 is more than the 10 training images"), "{text}");
}

/// Images that cannot be read until the gate opens.
struct Gated {
    images: MemoryImages,
    gate: Arc<(Mutex<bool>, Condvar)>,
}

impl ImageSource for Gated {
    fn len(&self) -> usize {
        self.images.len()
    }
    fn shape(&self) -> Option<ImageShape> {
        self.images.shape()
    }
    fn labels(&self) -> Option<&[u32]> {
        self.images.labels()
    }
    fn image(&self, index: usize) -> Result<Image<'_>> {
        let (open, changed) = &*self.gate;
        let open = changed.wait_while(open.lock().unwrap(), |open| !*open).unwrap();
        drop(open);
        self.images.image(index)
    }
}

#[test]
fn a_consumer_that_waits_for_images_can_be_stopped() {
    let gate: Arc<(Mutex<bool>, Condvar)> = Arc::default();
    let source = Arc::new(Gated { images: images(8), gate: gate.clone() });
    let options = LoaderOptions::evaluation(Count::lit(4));
    let loader = Loader::new(source, pipeline(VIEWS), options).unwrap();
    let asked = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let mut batches = stop::within(Some(asked.clone()), || loader.epoch(0, 0));
    asked.store(true, Ordering::Relaxed);
    assert!(matches!(batches.next(), Some(Err(Error::Stopped))), "no image can be read");
    // Withdrawn, the request has cost no batch.
    asked.store(false, Ordering::Relaxed);
    *gate.0.lock().unwrap() = true;
    gate.1.notify_all();
    assert_eq!(all(batches).iter().map(|b| b.step).collect::<Vec<_>>(), [0, 1]);
    // A thread that reads forever does not keep the consumer from leaving.
    *gate.0.lock().unwrap() = false;
    let batches = stop::within(Some(asked.clone()), || loader.epoch(1, 0));
    asked.store(true, Ordering::Relaxed);
    drop(batches);
    *gate.0.lock().unwrap() = true;
    gate.1.notify_all();
}
