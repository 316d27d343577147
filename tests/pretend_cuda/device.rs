//! The pretend device itself: that it finds the mistakes that it is there for.

use tch::{Device, Kind, Tensor};
use tikhonov::libtorch::graph::{Graph, copy_ahead, leave_default_stream};
use tikhonov::libtorch::stream::{AsyncScalar, AsyncUpload};

use super::{Counts, inside, library, starts_inside};

const GPU: Device = Device::Cuda(0);
const FLOAT: (Kind, Device) = (Kind::Float, GPU);

#[test]
fn mistakes_with_devices_streams_and_memory_are_found() {
    if !inside("device::mistakes_with_devices_streams_and_memory_are_found", &[]) {
        return;
    }
    let numbers = Tensor::arange(6, FLOAT);
    assert_eq!(numbers.sum(Kind::Float).double_value(&[]), 15.0);
    assert!(numbers.f_add(&Tensor::ones([6], (Kind::Float, Device::Cpu))).is_err());
    assert!(numbers.f_add(&Tensor::ones([6], (Kind::Float, Device::Cuda(1)))).is_err());
    assert!(Tensor::empty([3], FLOAT).double_value(&[1]).is_nan(), "nothing was written there");

    // A number on its way to the host, and batches on their way to the device, with the events that belong there.
    let pinned = Tensor::arange(6, (Kind::Float, Device::Cpu)).pin_memory(GPU);
    let before = Counts::now();
    assert_eq!(AsyncScalar::start(&(numbers.sum(Kind::Float) * 2)).unwrap().value().unwrap(), 30.0);
    assert_eq!(Counts::now().syncs, before.syncs + 1);
    let upload = AsyncUpload::to(GPU).unwrap().unwrap();
    for _ in 0..3 {
        let batch = upload.send(&pinned).unwrap().receive().unwrap();
        assert_eq!(batch.sum(Kind::Float).double_value(&[]), 15.0);
    }
    let now = Counts::now();
    assert_eq!((now.races, now.unrecorded), (0, 0));
    assert_eq!(now.blocking_copies, before.blocking_copies);
    // What is copied without blocking is not there before something waits for it.
    let mut late = pinned.empty_like().pin_memory(GPU);
    copy_ahead(&late, &numbers).unwrap();
    assert!(late.double_value(&[1]).is_nan());
    tch::Cuda::synchronize(0);
    assert_eq!(late.double_value(&[1]), 1.0);
    let _ = late.fill_(0.0);

    // From here on this thread has a stream of its own; others have the default one.
    leave_default_stream(GPU).unwrap();
    let doubled = &numbers * 2;
    assert_eq!(Counts::now().races, 0, "leaving the default stream waits for it");
    std::thread::spawn(move || drop(doubled.shallow_clone().fill_(1.0))).join().unwrap();
    assert_eq!(Counts::now().races, 1, "two streams write to one tensor");
    tch::Cuda::synchronize(0);
    drop(&numbers * 3);
    drop(numbers);
    std::thread::spawn(|| drop(Tensor::ones([4], FLOAT))).join().unwrap();
    assert_eq!(Counts::now().unrecorded, 1, "memory that is in use on this stream is allocated anew");
}

#[test]
fn a_recorded_step_is_replayed_with_the_generators_numbers_of_the_moment() {
    if !inside("device::a_recorded_step_is_replayed_with_the_generators_numbers_of_the_moment", &[]) {
        return;
    }
    leave_default_stream(GPU).unwrap();
    let mut sum = Tensor::zeros([3], FLOAT);
    let draw = || Tensor::rand([3], FLOAT);
    tch::manual_seed(7);
    let eager: Vec<_> = (0..2).map(|_| draw()).collect();
    assert!(!eager[0].equal(&eager[1]));
    let (graph, drawn) = Graph::record(GPU, || {
        let _ = sum.g_add_(&Tensor::ones([3], FLOAT));
        Ok(draw())
    })
    .unwrap();
    assert_eq!(sum.double_value(&[0]), 0.0, "it was recorded, and not computed");
    tch::manual_seed(7);
    for (step, eager) in eager.iter().enumerate() {
        graph.replay().unwrap();
        assert!(drawn.equal(eager));
        assert_eq!(sum.double_value(&[0]), step as f64 + 1.0);
    }
    drop(graph);
    let now = Counts::now();
    assert_eq!((now.open_pools, now.kept_pools, now.replays), (0, 0, 2));
}

#[test]
fn an_address_of_the_device_that_the_host_reads_ends_the_process() {
    let name = "device::an_address_of_the_device_that_the_host_reads_ends_the_process";
    if std::env::var_os("TIKHONOV_TEST_INSIDE").is_none() {
        let Some(library) = library(name) else { return };
        let outcome = starts_inside(library, name, &[]);
        assert_eq!(outcome.code, -1, "{}", outcome.stdout);
        assert!(outcome.stderr.contains("[pretend CUDA] SIGSEGV"), "{}", outcome.stderr);
        return;
    }
    assert!(inside(name, &[]));
    let tensor = Tensor::zeros([4], FLOAT);
    // SAFETY: there is none; this is the mistake that is to be found.
    let number = unsafe { tensor.data_ptr().cast::<f32>().read_volatile() };
    println!("{number}");
}
