// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 OR MIT
/*
 * Marks every block of one disk that a write may change: once before the device may see the write, and once after
 * the device has done it. docs/design/0002-tracker.md says why there and why twice.
 *
 * Request-based disks (a disk has either these or the next):
 *   block_rq_issue     the driver gets the request: mark, count as queued
 *   block_rq_requeue   the driver gave it back unfinished: not queued after all, it will be issued again
 *   block_rq_complete  so many bytes are done: mark, count as completed
 * Bio-based disks:
 *   block_bio_queue    a bio enters the disk: mark, count, remember its range
 *   block_bio_remap    the same for a bio that a disk stacked on top of this one passes down
 *   block_bio_complete the bio is done: mark the remembered range, count
 *
 * The kernel's types are declared as far as they are used; the loader relocates each field to the running kernel.
 */
/* From linux/types.h and linux/bpf.h, whose own includes the bpf target does not find on every distribution. */
typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef unsigned long long __u64;
typedef signed char __s8;
typedef short __s16;
typedef int __s32;
typedef long long __s64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u32 __wsum;
typedef _Bool bool;
#define true 1
#define false 0
#define BPF_MAP_TYPE_HASH 1
#define BPF_MAP_TYPE_ARRAY 2
#define BPF_F_MMAPABLE 1024
#define BPF_ANY 0

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include <bpf/bpf_core_read.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

#define KERNEL __attribute__((preserve_access_index))

struct bpf_map;

struct gendisk {
	int major;
	int first_minor;
	__u64 diskseq;
} KERNEL;

struct request_queue {
	struct gendisk *disk;
} KERNEL;

struct block_device {
	__u64 bd_start_sect;
	struct gendisk *bd_disk;
	__u32 bd_dev;
} KERNEL;

struct bvec_iter {
	__u64 bi_sector;
	unsigned int bi_size;
} KERNEL;

struct bio {
	struct bio *bi_next;
	struct block_device *bi_bdev;
	unsigned int bi_opf;
	struct bvec_iter bi_iter;
} KERNEL;

enum mq_rq_state { MQ_RQ_IDLE = 0 };

struct request {
	struct request_queue *q;
	unsigned int cmd_flags;
	unsigned int __data_len;
	__u64 __sector;
	struct bio *bio;
	enum mq_rq_state state;
} KERNEL;

#define REQ_OP_MASK 0xff
#define REQ_OP_DISCARD 3
#define REQ_OP_DRV_OUT 35
#define REQ_OP_DRV_FIRST 34

#define SECTOR_SHIFT 9
/* More segments than any device takes in one discard. */
#define MERGED_BIOS_MAX 1024

/* Set before loading; tracker/program.rs has the same struct. */
struct config {
	__u32 major;
	__u32 first_minor;
	__u64 diskseq;
	__u64 blocks;
	__u32 shift;
	__u32 mutant;
};
const volatile struct config config = {};

/* Deliberate defects that tests must notice. */
#define MUTANT_MARK_ONLY_QUEUED 1
#define MUTANT_LOSE_COMPLETIONS 2
#define MUTANT_LOSE_QUEUED 3
/* No defect: as on kernels that have no bpf_loop. */
#define MUTANT_BY_STEPS 4

/* What user space must know; tracker/ebpf.rs has the same numbers. */
#define FLAG_MEDIA_CHANGED 1
#define FLAG_BEYOND_END 2
#define FLAG_PASSTHROUGH 4
#define FLAG_RANGE_LOST 8

/* Each on a cache line of its own; tracker/ebpf.rs reads them from mapped memory. */
struct counters {
	__u64 queued;
	__u64 pad1[7];
	__u64 completed;
	__u64 pad2[7];
	__u64 flags;
	__u64 pad3[7];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct counters);
} counters SEC(".maps");

/* One bit a block. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} marks SEC(".maps");

/* The ranges of bios under way: at completion a bio no longer knows its own. */
struct range {
	__u64 sector;
	__u64 bytes;
};
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, __u64);
	__type(value, struct range);
} ranges SEC(".maps");

/*
 * An element for each step of a loop, where the kernel has no bpf_loop (before 5.17); the loader makes it large enough
 * there.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u8);
} steps SEC(".maps");

/* The kernel's list of helpers, as far as it is asked about. */
enum bpf_func_id___newer { BPF_FUNC_loop___newer = 181 };

/* A constant to the verifier, which looks at no call behind the branch that is not taken. */
static __always_inline bool by_steps(void)
{
	return config.mutant == MUTANT_BY_STEPS ||
	       !bpf_core_enum_value_exists(enum bpf_func_id___newer, BPF_FUNC_loop___newer);
}

static __always_inline struct counters *counts(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&counters, &zero);
}

static __always_inline void flag(__u64 flags)
{
	struct counters *c = counts();

	if (c)
		__sync_fetch_and_or(&c->flags, flags);
}

static __always_inline bool ours(struct gendisk *disk)
{
	return disk && disk->major == config.major && disk->first_minor == config.first_minor;
}

/* Changes content. Flushes and reads have even numbers; commands made by hand are flagged elsewhere. */
static __always_inline bool writes(unsigned int opf)
{
	unsigned int op = opf & REQ_OP_MASK;

	return (op & 1) && op < REQ_OP_DRV_FIRST;
}

struct span {
	__u64 first;
	__u64 last;
};

static long mark_word(__u32 index, struct span *span)
{
	__u64 word = (span->first >> 6) + index;
	__u64 mask = ~0ULL;
	__u32 key = word;
	__u64 *bits;

	if (word > span->last >> 6)
		return 1;
	if (word == span->first >> 6)
		mask &= ~0ULL << (span->first & 63);
	if (word == span->last >> 6)
		mask &= ~0ULL >> (63 - (span->last & 63));
	bits = bpf_map_lookup_elem(&marks, &key);
	if (!bits)
		return 1;
	/*
	 * Never skipped where the bit is set already: a taking may clear it at this very moment. The result is used
	 * so that the operation is the ordered one on every processor.
	 */
	if (__sync_fetch_and_or(bits, mask) == ~0ULL)
		return 0;
	return 0;
}

static long mark_word_step(struct bpf_map *map, const void *key, void *value, void *span)
{
	return mark_word(*(const __u32 *)key, span);
}

static __always_inline void mark(__u64 sector, __u64 bytes)
{
	struct span span;
	__u64 words;

	if (!bytes)
		return;
	span.first = sector >> (config.shift - SECTOR_SHIFT);
	span.last = ((sector << SECTOR_SHIFT) + bytes - 1) >> config.shift;
	if (span.last >= config.blocks) {
		flag(FLAG_BEYOND_END);
		if (span.first >= config.blocks)
			return;
		span.last = config.blocks - 1;
	}
	words = (span.last >> 6) - (span.first >> 6) + 1;
	if (words == 1)
		mark_word(0, &span);
	else if (!by_steps())
		bpf_loop(words, mark_word, &span, 0);
	else if ((__u64)bpf_for_each_map_elem(&steps, mark_word_step, &span, 0) < words)
		flag(FLAG_RANGE_LOST);
}

struct walk {
	__u64 bio;
};

static long mark_merged(__u32 index, struct walk *walk)
{
	struct bio *bio = (struct bio *)walk->bio;

	if (!bio || index >= MERGED_BIOS_MAX)
		return 1;
	mark(BPF_CORE_READ(bio, bi_iter.bi_sector), BPF_CORE_READ(bio, bi_iter.bi_size));
	walk->bio = (__u64)BPF_CORE_READ(bio, bi_next);
	return 0;
}

static long mark_merged_step(struct bpf_map *map, const void *key, void *value, void *walk)
{
	return mark_merged(*(const __u32 *)key, walk);
}

/* Merged discards need not touch: only their bios know where they are. */
static __always_inline void mark_request(struct request *rq, __u64 bytes)
{
	struct bio *bio = rq->bio;

	if ((rq->cmd_flags & REQ_OP_MASK) == REQ_OP_DISCARD && bio && bio->bi_next) {
		struct walk walk = { .bio = (__u64)bio };

		if (!by_steps())
			bpf_loop(MERGED_BIOS_MAX, mark_merged, &walk, 0);
		else
			bpf_for_each_map_elem(&steps, mark_merged_step, &walk, 0);
		if (walk.bio)
			flag(FLAG_RANGE_LOST);
	} else {
		mark(rq->__sector, bytes);
	}
}

/* Whether this is a write to the tracked disk; flags what makes the map worthless on the way. */
static __always_inline bool tracked(struct request *rq)
{
	struct gendisk *disk = rq->q->disk;

	if (!ours(disk))
		return false;
	if (disk->diskseq != config.diskseq)
		flag(FLAG_MEDIA_CHANGED);
	if ((rq->cmd_flags & REQ_OP_MASK) == REQ_OP_DRV_OUT && rq->__data_len)
		flag(FLAG_PASSTHROUGH);
	return writes(rq->cmd_flags);
}

SEC("tp_btf/block_rq_issue")
int BPF_PROG(rq_issue, struct request *rq)
{
	struct counters *c = counts();
	__u64 bytes;

	if (!c || !tracked(rq) || config.mutant == MUTANT_LOSE_QUEUED)
		return 0;
	bytes = rq->__data_len;
	mark_request(rq, bytes);
	__sync_fetch_and_add(&c->queued, bytes);
	return 0;
}

SEC("tp_btf/block_rq_requeue")
int BPF_PROG(rq_requeue, struct request *rq)
{
	struct counters *c = counts();

	/* A driver that is out of resources may give back what was never issued. */
	if (!c || !tracked(rq) || rq->state == MQ_RQ_IDLE)
		return 0;
	__sync_fetch_and_sub(&c->queued, (__u64)rq->__data_len);
	return 0;
}

SEC("tp_btf/block_rq_complete")
int BPF_PROG(rq_complete, struct request *rq, int error, unsigned int nr_bytes)
{
	struct counters *c = counts();

	if (!c || !tracked(rq) || !nr_bytes || config.mutant == MUTANT_LOSE_COMPLETIONS)
		return 0;
	if (config.mutant != MUTANT_MARK_ONLY_QUEUED)
		mark_request(rq, nr_bytes);
	/* Failed before it was issued: the kernel counts it all the same. */
	if (rq->state == MQ_RQ_IDLE)
		__sync_fetch_and_add(&c->queued, (__u64)nr_bytes);
	__sync_fetch_and_add(&c->completed, (__u64)nr_bytes);
	return 0;
}

static __always_inline void bio_enters(struct bio *bio, __u64 sector, __u64 bytes)
{
	struct counters *c = counts();
	struct gendisk *disk = bio->bi_bdev->bd_disk;
	struct range range = { .sector = sector, .bytes = bytes };
	__u64 key = (__u64)bio;

	if (!c || !bytes)
		return;
	if (disk->diskseq != config.diskseq)
		flag(FLAG_MEDIA_CHANGED);
	if (config.mutant == MUTANT_LOSE_QUEUED)
		return;
	if (bpf_map_update_elem(&ranges, &key, &range, BPF_ANY))
		flag(FLAG_RANGE_LOST);
	mark(sector, bytes);
	__sync_fetch_and_add(&c->queued, bytes);
}

SEC("tp_btf/block_bio_queue")
int BPF_PROG(bio_queue, struct bio *bio)
{
	/* The partition's start has been added already. */
	if (ours(bio->bi_bdev->bd_disk) && writes(bio->bi_opf))
		bio_enters(bio, bio->bi_iter.bi_sector, bio->bi_iter.bi_size);
	return 0;
}

SEC("tp_btf/block_bio_remap")
int BPF_PROG(bio_remap, struct bio *bio, __u32 from, __u64 from_sector)
{
	struct block_device *to = bio->bi_bdev;

	/* From a partition to its own disk: block_bio_queue or an earlier remap reports it. */
	if (!ours(to->bd_disk) || !writes(bio->bi_opf) || from == to->bd_dev)
		return 0;
	/* The partition's start has not been added yet. */
	bio_enters(bio, bio->bi_iter.bi_sector + to->bd_start_sect, bio->bi_iter.bi_size);
	return 0;
}

SEC("tp_btf/block_bio_complete")
int BPF_PROG(bio_complete, struct request_queue *q, struct bio *bio)
{
	struct counters *c = counts();
	__u64 key = (__u64)bio;
	struct range *range = bpf_map_lookup_elem(&ranges, &key);

	if (!c || !range)
		return 0;
	if (config.mutant != MUTANT_LOSE_COMPLETIONS) {
		if (config.mutant != MUTANT_MARK_ONLY_QUEUED)
			mark(range->sector, range->bytes);
		__sync_fetch_and_add(&c->completed, range->bytes);
	}
	bpf_map_delete_elem(&ranges, &key);
	return 0;
}
