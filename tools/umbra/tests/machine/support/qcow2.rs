//! A qcow2 image without `qemu-img`: version 2, clusters of 64 KiB, nothing allocated (QEMU, docs/interop/qcow2).

const CLUSTER: usize = 64 << 10;

/// Makes an empty image of a disk of that size, 512 MiB at most.
pub fn empty(size: u64) -> Vec<u8> {
    assert!(
        size <= 512 << 20,
        "one table of the first level maps no more"
    );
    // Header, table of reference counts, a block of those, table of the first level: a cluster each.
    let [counts, block, level1] = [1, 2, 3].map(|n| (n * CLUSTER) as u64);
    let mut bytes = vec![0; 4 * CLUSTER];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0, b"QFI\xfb");
    put(4, &2u32.to_be_bytes());
    put(20, &CLUSTER.trailing_zeros().to_be_bytes());
    put(24, &size.to_be_bytes());
    put(36, &1u32.to_be_bytes());
    put(40, &level1.to_be_bytes());
    put(48, &counts.to_be_bytes());
    put(56, &1u32.to_be_bytes());
    put(CLUSTER, &block.to_be_bytes());
    for cluster in 0..4 {
        put(2 * CLUSTER + 2 * cluster, &1u16.to_be_bytes());
    }
    bytes
}
