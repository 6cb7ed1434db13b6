//! Fine-tuning: the whole encoder trained with labels.

use crate::head::{Decay, Head};
use crate::{Labeled, ProbeTime, Space, check, when};
use pauc_traits::probe::{Metric, ProbeContext, RowsView, TuningOptions, Views, When};
use pauc_traits::{
    Count, DecayFactor, NonNegative, Positive, Probe, Result, TrainingSpan, component, progress, stop,
};

component! {
    /// Accuracy on the test split after fine-tuning a copy of the encoder with labels.
    ///
    /// A linear classifier is added to the features. Encoder and classifier are trained on the mean
    /// cross-entropy by stochastic gradient descent with momentum 0.9. No parameter of the encoder is frozen,
    /// and its batch normalization uses batch statistics. An encoder with `drop_path` skips branches as in the run.
    /// The run's own network does not change. The defaults are those of PCL: 20 epochs, batches of 256,
    /// learning rates of 0.01 for the encoder and 0.1 for the
    /// classifier, both times 0.2 after 60 % and after 80 % of the epochs, weight decay 5e-4. With 1 % of the
    /// labels, PCL uses 1 for the classifier: `LowShot(labels: Percent1, probe: FineTune(head_lr: 1.0))`.
    /// Images are cropped and flipped as in the recipe's first view.
    ///
    /// It costs about as much as training for the same number of epochs. As a baseline, `RandomInit` is the
    /// same network trained with labels only. With fewer images than a batch, the batch is all images. An
    /// incomplete last batch of an epoch is left out. Without images or a network, as for raw pixels, nothing
    /// is measured.
    ///
    /// Metric: `finetune/e20/b256/step0.2/crop-flip/lr0.01/head0.1/wd0.0005`, a fraction; the chance
    /// level is the fraction of the most frequent class. Source: Li et al. 2021 (PCL), semi-supervised
    /// classification.
    pub struct FineTune: Probe {
        /// The encoder's learning rate.
        pub lr: Positive = Positive::lit(0.01),
        /// The classifier's learning rate.
        pub head_lr: Positive = Positive::lit(0.1),
        /// Epochs on the training split.
        pub epochs: Count = Count::lit(20),
        /// The number of images in a batch.
        pub batch: Count = Count::lit(256),
        /// How both rates fall: `Step(0.2)`, times 0.2 after 60 % and after 80 % of the epochs; `Cosine`; or
        /// `Constant`.
        pub decay: Decay = Decay::Step(Positive::lit(0.2)),
        /// λ of encoder and classifier, coupled: the decay passes through the momentum.
        pub weight_decay: NonNegative = NonNegative::lit(5e-4),
        /// The factor between the encoder's learning rates of adjacent layers, from the last one down: MAE fine-tunes
        /// transformers with 0.65 to 0.75.
        #[added_in("0.3")]
        pub layer_decay: DecayFactor = DecayFactor::lit(1.0),
        /// The views of training images: `CropFlip` as in the recipe's first view, or `Evaluation`.
        pub views: Views = Views::CropFlip,
        /// How often it runs during training, such as `Epochs(50)`; it also runs at the end.
        pub every: Option<TrainingSpan> = None,
        /// `End`: it runs at the end of the run.
        pub at: ProbeTime = ProbeTime::End,
    }
}

impl Probe for FineTune {
    fn when(&self) -> When {
        when(self.every, self.at)
    }

    fn needs_labels(&self) -> bool {
        true
    }

    fn measure(&self, context: &ProbeContext<'_>) -> Result<Vec<Metric>> {
        let Some(splits) = Space::Features.labeled(context) else { return Ok(Vec::new()) };
        let test_images = context.test.as_ref().and_then(|t| t.images);
        let (Some(network), Some(images), Some(test_images)) =
            (context.network, context.train.images, test_images)
        else {
            return Ok(Vec::new());
        };
        splits.check("FineTune", context.classes)?;
        let Labeled { train, labels, test_labels, .. } = splits;
        let epochs = self.epochs.get() as u64;
        let options = TuningOptions {
            views: self.views,
            batch: self.batch,
            epochs,
            layer_decay: self.layer_decay,
            seed: context.seed,
        };
        let mut tuning = network.tune(images, options)?;
        let mut head = Head::new(train.cols, context.classes, context.seed);
        let task = progress::task("fine-tuning", epochs * tuning.steps_per_epoch());
        for epoch in 0..epochs {
            let factor = self.decay.factor(epoch, epochs);
            for _ in 0..tuning.steps_per_epoch() {
                stop::check()?;
                let (ids, features) = tuning.forward()?;
                let labels: Vec<u32> = ids.iter().map(|i| labels[*i as usize]).collect();
                let decay = self.weight_decay.get();
                let (_, gradient) =
                    head.step_with_gradient(&features, &labels, self.head_lr.get() * factor, decay);
                tuning.backward(gradient, self.lr.get() * factor, decay)?;
                task.advance(1);
            }
        }
        let features = tuning.features(test_images)?;
        check(
            "FineTune, features after training",
            RowsView::new(&features, train.cols),
            test_labels,
            context.classes,
        )?;
        Ok(vec![Metric::accuracy(self.name(), head.accuracy(&features, test_labels))])
    }
}

impl FineTune {
    fn name(&self) -> String {
        let layers = match self.layer_decay.get() {
            1.0 => String::new(),
            decay => format!("/layers{decay}"),
        };
        format!(
            "finetune/e{}/b{}/{}{}/lr{}/head{}/wd{}{layers}",
            self.epochs.get(),
            self.batch.get(),
            self.decay.name(),
            self.views.suffix(),
            self.lr.get(),
            self.head_lr.get(),
            self.weight_decay.get()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pauc_traits::dataset::ImageSource;
    use pauc_traits::probe::{ProbedNetwork, SplitView, Tuning};
    use pauc_traits::{Image, ImageShape};
    use std::sync::Arc;

    /// Images of two pixels. The pixels times a single learned weight are the features.
    struct Two(Vec<[u8; 2]>, Vec<u32>);

    impl ImageSource for Two {
        fn len(&self) -> usize {
            self.0.len()
        }
        fn shape(&self) -> Option<ImageShape> {
            Some(ImageShape { height: 1, width: 2, channels: 1 })
        }
        fn image(&self, index: usize) -> Result<Image<'_>> {
            Ok(Image { shape: self.shape().unwrap(), pixels: self.0[index][..].into() })
        }
        fn labels(&self) -> Option<&[u32]> {
            Some(&self.1)
        }
    }

    /// x = w·pixels. w starts at 0, so all features are equal at first.
    struct Scale;
    struct ScaleTuning {
        w: f64,
        images: Arc<dyn ImageSource>,
        pixels: Vec<f32>,
        rates: std::rc::Rc<std::cell::RefCell<Vec<f64>>>,
    }

    fn pixels(images: &Arc<dyn ImageSource>) -> Vec<f32> {
        let pixels =
            |i| images.image(i).unwrap().pixels.iter().map(|p| *p as f32 / 255.0).collect::<Vec<_>>();
        (0..images.len()).flat_map(pixels).collect()
    }

    thread_local! {
        static RATES: std::rc::Rc<std::cell::RefCell<Vec<f64>>> = Default::default();
    }

    impl ProbedNetwork for Scale {
        fn features(&self, _: &Arc<dyn ImageSource>, _: Views, _: u64, _: u64) -> Result<Vec<f32>> {
            unreachable!()
        }
        fn tune(&self, images: &Arc<dyn ImageSource>, _: TuningOptions) -> Result<Box<dyn Tuning>> {
            let (images, pixels) = (images.clone(), pixels(images));
            Ok(Box::new(ScaleTuning { w: 0.01, images, pixels, rates: RATES.with(Clone::clone) }))
        }
    }

    impl Tuning for ScaleTuning {
        fn steps_per_epoch(&self) -> u64 {
            2
        }
        fn forward(&mut self) -> Result<(Vec<u64>, Vec<f32>)> {
            let x = self.pixels.iter().map(|p| self.w as f32 * p).collect();
            Ok(((0..self.images.len() as u64).collect(), x))
        }
        fn backward(&mut self, gradient: Vec<f32>, lr: f64, _: f64) -> Result<()> {
            let slope: f64 = gradient.iter().zip(&self.pixels).map(|(g, p)| *g as f64 * *p as f64).sum();
            self.w -= lr * slope;
            self.rates.borrow_mut().push(lr);
            Ok(())
        }
        fn features(&mut self, images: &Arc<dyn ImageSource>) -> Result<Vec<f32>> {
            assert!(self.w > 0.02, "the encoder has learned: {}", self.w);
            Ok(pixels(images).iter().map(|p| self.w as f32 * p).collect())
        }
    }

    #[test]
    fn encoder_and_classifier_learn_together_at_their_own_rates() {
        let labels: Vec<u32> = (0..8).map(|i| i % 2).collect();
        let picture = |l: &u32| if *l == 0 { [250, 20] } else { [30, 240] };
        let images: Arc<dyn ImageSource> =
            Arc::new(Two(labels.iter().map(picture).collect(), labels.clone()));
        let rows = vec![0.5f32; 16];
        let rows = RowsView::new(&rows, 2);
        let split =
            SplitView { features: rows, embeddings: rows, labels: Some(&labels), images: Some(&images) };
        let context = ProbeContext {
            train: split,
            test: Some(split),
            classes: 2,
            levels: &[],
            concentrations: &[],
            seed: 0,
            network: Some(&Scale),
            device: None,
        };
        let probe: FineTune = pauc_traits::component_ron::options()
            .from_str("(lr: 0.5, head_lr: 2.0, epochs: 10, batch: 4, decay: Step(0.5))")
            .unwrap();
        let got = probe.measure(&context).unwrap();
        let name = "finetune/e10/b4/step0.5/crop-flip/lr0.5/head2/wd0.0005";
        assert_eq!(got, [Metric::accuracy(name, 1.0)]);
        let rates = RATES.with(|r| r.borrow().clone());
        assert_eq!(rates.len(), 20);
        assert_eq!((rates[0], rates[11], rates[12], rates[16]), (0.5, 0.5, 0.25, 0.125));
        // Raw pixels have no network.
        assert_eq!(probe.measure(&ProbeContext { network: None, ..context }).unwrap(), []);
    }
}
