//! A group of threads on the host device, one dispatch and one combine, every value checked.

use moelink::{sys, Error, Group, Manager};
use std::ffi::c_void;
use std::{ptr, slice, thread};

const RANKS: i32 = 2;
const EXPERTS: i32 = 5; // not divisible by the ranks: rank 0 owns 0..3, rank 1 owns 3..5
const TOP_K: usize = 2;
const HIDDEN: usize = 7;
const INVALID_ID: i32 = -7;

fn owner(expert: i32) -> Option<i32> {
    match expert {
        0..=2 => Some(0),
        3..=4 => Some(1),
        _ => None,
    }
}

/// Ids of every rank's tokens; different counts, one token for both ranks, one for nobody, ids masked or out of range.
fn ids_of(rank: i32) -> Vec<[i32; TOP_K]> {
    match rank {
        0 => vec![[0, 3], [1, 2], [4, -1], [-1, -1], [EXPERTS, 2]],
        _ => vec![[4, 3], [2, 4], [0, 1]],
    }
}

fn value(rank: i32, token: usize, column: usize) -> f32 {
    (rank * 1000) as f32 + (token * 10) as f32 + column as f32 * 0.125
}

fn inputs_of(rank: i32) -> Vec<f32> {
    (0..ids_of(rank).len()).flat_map(|token| (0..HIDDEN).map(move |column| value(rank, token, column))).collect()
}

fn reaches(ids: &[i32; TOP_K], rank: i32) -> bool {
    ids.iter().any(|&id| owner(id) == Some(rank))
}

fn rows(data: *mut f32) -> sys::moelink_rows {
    sys::moelink_rows {
        data: data.cast::<c_void>(),
        row_bytes: (HIDDEN * 4) as u64,
        row_stride: 0,
        dtype: sys::MOELINK_DTYPE_F32 as i32,
        reserved: 0,
    }
}

fn check_received(rank: i32, out: &sys::moelink_dispatched, payload: &sys::moelink_rows) {
    assert_eq!((out.ranks, out.row_capacity), (RANKS, RANKS as i64 * out.slots_per_rank));
    // SAFETY: the dispatch has returned, so the counts are there; so are the rows below.
    let counts = unsafe { slice::from_raw_parts(out.recv_counts, RANKS as usize) };
    for source in 0..RANKS {
        let sent: Vec<usize> = (0..ids_of(source).len()).filter(|&token| reaches(&ids_of(source)[token], rank)).collect();
        assert_eq!(counts[source as usize] as usize, sent.len(), "rank {rank}: rows from {source}");
        for slot in 0..out.slots_per_rank as usize {
            let row = source as usize * out.slots_per_rank as usize + slot;
            let ids = unsafe { slice::from_raw_parts(out.topk_ids.add(row * TOP_K), TOP_K) };
            let wanted: Vec<i32> = match sent.get(slot) {
                Some(&token) => {
                    ids_of(source)[token].iter().map(|&id| if owner(id) == Some(rank) { id } else { INVALID_ID }).collect()
                }
                None => vec![INVALID_ID; TOP_K],
            };
            assert_eq!(ids, wanted, "rank {rank}: ids of row {row}");
            if let Some(&token) = sent.get(slot) {
                let data = unsafe { payload.data.cast::<u8>().add(row * payload.row_stride as usize) }.cast::<f32>();
                let got: Vec<u32> = (0..HIDDEN).map(|at| unsafe { data.add(at).read_unaligned() }.to_bits()).collect();
                let wanted: Vec<u32> = (0..HIDDEN).map(|at| value(source, token, at).to_bits()).collect();
                assert_eq!(got, wanted, "rank {rank}: row {row}");
            }
        }
    }
}

fn run_rank(group: &Group) -> Result<(), Error> {
    let rank = group.rank();
    let ids = ids_of(rank);
    let mut input = inputs_of(rank);

    let mut manager = Manager::new(group, sys::MOELINK_MANAGER_ONE_SIDED as i32, None)?;
    let mut config = moelink::manager_config();
    config.max_tokens = 8;
    config.top_k = TOP_K as i32;
    config.num_experts = EXPERTS;
    config.combine_row_bytes = (HIDDEN * 4) as u64;
    manager.init(config, &[(HIDDEN * 4) as u64])?;
    assert_eq!(manager.state()?, (sys::MOELINK_STATE_READY as i32, 1));
    assert!(manager.sizes()?.workspace_bytes > 0);

    let payloads = [rows(input.as_mut_ptr())];
    let mut received = [rows(ptr::null_mut())];
    let mut args = moelink::dispatch_args();
    args.num_tokens = ids.len() as i32;
    args.topk_ids = ids.as_ptr().cast();
    args.topk_ids_dtype = sys::MOELINK_DTYPE_I32 as i32;
    args.invalid_id = INVALID_ID;
    args.payload_count = 1;
    args.payloads = payloads.as_ptr();
    let mut out = moelink::dispatched();
    out.payloads = received.as_mut_ptr();
    // SAFETY: the arrays have num_tokens rows; host calls are done when they return.
    unsafe { manager.dispatch(&args, ptr::null_mut(), &mut out)? };
    check_received(rank, &out, &received[0]);
    assert_eq!(manager.state()?.0, sys::MOELINK_STATE_DISPATCHED as i32);

    let mut output = vec![f32::NAN; ids.len() * HIDDEN];
    let mut combine = moelink::combine_args();
    combine.input = received[0];
    combine.input.dtype = sys::MOELINK_DTYPE_F32 as i32;
    combine.output = rows(output.as_mut_ptr());
    unsafe { manager.combine(&combine, ptr::null_mut())? };
    for (token, ids) in ids.iter().enumerate() {
        let ranks = (0..RANKS).filter(|&rank| reaches(ids, rank)).count() as f32;
        for column in 0..HIDDEN {
            let wanted = value(rank, token, column) * ranks;
            assert_eq!(output[token * HIDDEN + column].to_bits(), wanted.to_bits(), "rank {rank}: token {token}, {column}");
        }
    }
    manager.cleanup()?;
    assert_eq!(manager.state()?.0, sys::MOELINK_STATE_CREATED as i32);
    group.finalize()
}

#[test]
fn two_ranks_dispatch_and_combine() {
    println!("moelink {}", moelink::version_string());
    let groups = Group::threads(RANKS, sys::MOELINK_DEVICE_HOST as i32).unwrap();
    let ranks: Vec<_> = groups.into_iter().map(|group| thread::spawn(move || run_rank(&group))).collect();
    let results: Vec<_> = ranks.into_iter().map(|rank| rank.join()).collect();
    for (rank, result) in results.into_iter().enumerate() {
        result.unwrap_or_else(|_| panic!("rank {rank} panicked")).unwrap_or_else(|error| panic!("rank {rank}: {error}"));
    }
}

#[test]
fn groups_gather_in_rank_order() {
    let groups = Group::threads(3, sys::MOELINK_DEVICE_HOST as i32).unwrap();
    thread::scope(|scope| {
        for group in groups {
            scope.spawn(move || {
                let mine = [group.rank() as u8, 7];
                assert_eq!(group.allgather(&mine).unwrap(), [0, 7, 1, 7, 2, 7]);
                group.finalize().unwrap();
            });
        }
    });
}

#[test]
fn errors_carry_status_and_text() {
    let error = Group::threads(-3, sys::MOELINK_DEVICE_HOST as i32).unwrap_err();
    assert_eq!(error.status, sys::MOELINK_ERR_INVALID_ARGUMENT);
    assert_eq!(error.name(), "MOELINK_ERR_INVALID_ARGUMENT");
    assert!(error.message.contains("-3"), "{error}");

    let group = Group::threads(1, sys::MOELINK_DEVICE_HOST as i32).unwrap().remove(0);
    let error = Manager::new(&group, 99, None).unwrap_err();
    assert!(error.status < 0 && error.message.contains("99"), "{error}");
    let mut manager = Manager::new(&group, sys::MOELINK_MANAGER_ONE_SIDED as i32, None).unwrap();
    let mut config = moelink::manager_config();
    config.top_k = 33;
    let error = manager.init(config, &[4]).unwrap_err();
    assert_eq!(error.status, sys::MOELINK_ERR_INVALID_ARGUMENT, "{error}");
    assert_eq!(manager.state().unwrap(), (sys::MOELINK_STATE_CREATED as i32, 0));
}

#[test]
fn version_matches_the_headers() {
    assert_eq!(moelink::version(), sys::MOELINK_VERSION as i32);
    let text = format!("{}.{}.{}", sys::MOELINK_VERSION_MAJOR, sys::MOELINK_VERSION_MINOR, sys::MOELINK_VERSION_PATCH);
    assert!(moelink::version_string().starts_with(&text));
}
