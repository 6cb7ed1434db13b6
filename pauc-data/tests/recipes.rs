//! The recipe syntax of datasets and augmentations.
#![allow(clippy::unwrap_used)] // the whole file is a test

use pauc_data as _;
use pauc_traits::Configured;
use pauc_traits::component_ron::options;
use pauc_traits::registry::{Entry, Kind, kind};

#[test]
fn every_component_is_read_and_written_back() {
    #[cfg_attr(not(feature = "parquet"), allow(unused_mut))]
    let mut datasets = vec![
        "Cifar10(root:\"data/cifar\")",
        "Cifar100(root:\"data/cifar\",labels:Coarse)",
        "FashionMini()",
        "FashionMnist(root:\"data/fashion-mnist\")",
        "FileList(list:\"a.csv\",test:None,root:Some(\"x\"),test_fraction:0.1,on_error:Skip(max:3),shorter_side:Some(256),background:(0,0,0),cache:2048,disk_cache:(folder:\"c\",budget:10),pixel_limit:50000000)",
        "ImageFolder(root:\"photos\",test_fraction:0.1,on_error:Fail,shorter_side:None,background:(255,255,255),cache:2048,disk_cache:None,pixel_limit:50000000)",
        "ImageNet(root:\"x\",subset:ImageNet100,on_error:Fail,shorter_side:None,background:(255,255,255),cache:2048,disk_cache:None,pixel_limit:50000000)",
        "Mnist(root:\"data/mnist\")",
        "Npy(images:\"x.npy\",labels:Some(\"y.npy\"),test_images:None,test_labels:None,layout:ChannelsFirst)",
        "Safetensors(file:\"x\",layout:ChannelsLast)",
        "Shapes(count:100,size:32,classes:8,seed:1)",
        "Stl10(root:\"x\",train:Both)",
        "Subset(of:Cifar10(root:\"x\"),classes:[\"cat\",\"dog\"],train:PerClass(5),test:Percent10)",
        "Tar(root:\"x\",test:None,test_fraction:0.1,index:None,unpacked_limit:4096,on_error:Fail,shorter_side:None,background:(255,255,255),cache:2048,disk_cache:None,pixel_limit:50000000)",
    ];
    let augmentations = [
        "Byol(size:32,view:Second,scale:(0.08,1.0))",
        "CenterCrop(size:28)",
        "ColorJitter(p:0.8,brightness:0.4,contrast:0.4,saturation:0.4,hue:0.1)",
        "Equalize(p:0.2)",
        "Erasing(p:0.5,scale:(0.02,0.33),ratio:(0.3,3.3),cover:Noise)",
        "GaussianBlur(p:0.5,sigma:(0.1,2.0),model:Exact,kernel:Some(23))",
        "Grayscale(p:0.2)",
        "HorizontalFlip(p:0.5)",
        "MocoV2(size:32,blur:0.5,scale:(0.2,1.0))",
        "MultiCrop(size:32,crop:Local)",
        "Normalize(mean:[0.5],deviation:[0.25])",
        "RandomCrop(size:32,padding:4)",
        "RandomResizedCrop(size:224,scale:(0.08,1.0),ratio:(0.75,1.25),interpolation:Bicubic)",
        "Resize(size:256,interpolation:Bilinear,crop:false)",
        "Rotation(degrees:30.0,p:1.0,interpolation:Nearest,fill:0)",
        "SimClr(size:32,strength:1.0,blur:0.5,scale:(0.08,1.0))",
        "SimClrStrong(size:32,strength:1.0,scale:(0.08,1.0))",
        "Solarize(p:0.2,threshold:128)",
        "VerticalFlip(p:0.5)",
    ];
    #[cfg(feature = "parquet")]
    datasets.insert(9, "Parquet(root:\"x\",image:None,label:None,test_fraction:0.1,encoded_limit:4096,on_error:Fail,shorter_side:None,background:(255,255,255),cache:2048,disk_cache:None,pixel_limit:50000000)");
    for text in &datasets {
        let dataset = Configured::<kind::Dataset>::parse(text).unwrap();
        assert_eq!(
            options().to_string(&dataset).unwrap(),
            text.replace("Some(256)", "256")
                .replace("Some(\"x\")", "\"x\"")
                .replace("Some(\"y.npy\")", "\"y.npy\"")
        );
    }
    for text in augmentations {
        let augmentation = Configured::<kind::Augmentation>::parse(text).unwrap();
        assert_eq!(options().to_string(&augmentation).unwrap(), text.replace("Some(23)", "23"));
    }
    defaults_are_read_and_written_back::<kind::Dataset>();
    defaults_are_read_and_written_back::<kind::Augmentation>();
}

/// Checks every registered component without required fields, including those not listed above.
fn defaults_are_read_and_written_back<T: Kind + ?Sized>() {
    let needs_none = |e: &&&Entry<T>| e.fields.iter().all(|f| f.default.is_some());
    for entry in T::entries().iter().filter(needs_none) {
        let text = format!("{}()", entry.name);
        let written = options().to_string(&Configured::<T>::parse(&text).unwrap()).unwrap();
        let again = options().to_string(&Configured::<T>::parse(&written).unwrap()).unwrap();
        assert_eq!(again, written, "{text}");
    }
}

#[test]
fn optional_fields_need_no_some_and_bad_values_are_located() {
    let parse = |text: &str| Configured::<kind::Augmentation>::parse(text);
    assert!(parse("GaussianBlur(model: Exact, kernel: 3)").is_ok());
    let error = parse("RandomResizedCrop(size: 32,\n scale: (1.0, 0.2))").unwrap_err();
    assert!(error.to_string().contains("the smaller one first, got (1, 0.2)"), "{error}");
    assert_eq!(error.span.start.line, 2);
    assert!(parse("HorizontalFlip(p: 1.5)").unwrap_err().to_string().contains("between 0 and 1, got 1.5"));
    assert!(parse("CenterCrop()").is_err());
}
