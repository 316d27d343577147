fn main() {
    println!(
        "{} {} {:?}",
        tikhonov::libtorch::version(),
        tikhonov::libtorch::cpu_capability(),
        tikhonov::libtorch::cuda_count()
    );
}
