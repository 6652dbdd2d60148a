/* A publisher dies at each of its instructions in turn: its readers and its successor must not care.
 *
 * A child publishes under single-stepping (ptrace). After each step the memory is what a SIGKILL there would leave, since a
 * processor's own stores become visible in order on x86 and all at once on one core. The parent copies it and, on the copy, reads
 * (the payload before or the one published, whole), publishes as the successor would, and reads that back.
 */
#include "shm_layout/access.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#define WORDS 16
#define NO_PTRACE 77

static struct segment_header header;

static void fail(const char *what, long long step, long long value)
{
    fprintf(stderr, "step %lld: %s (%lld)\n", step, what, value);
    exit(1);
}

static void publish(void *base, uint64_t k)
{
    uint64_t payload[WORDS];
    for (int i = 0; i < WORDS; i++)
        payload[i] = k;
    if (segment_publish(base, header.off_directive, payload, sizeof payload, k) != 0)
        exit(3);
}

static uint64_t read_whole(const void *base, long long step)
{
    uint64_t payload[WORDS], epoch;
    int64_t length = segment_read(base, header.off_directive, payload, sizeof payload, &epoch);
    if (length != (int64_t)sizeof payload)
        fail("not read", step, length);
    for (int i = 0; i < WORDS; i++)
        if (payload[i] != epoch)
            fail("a mixture", step, i);
    return epoch;
}

int main(void)
{
    struct segment_limits limits = { .max_servers = 1, .max_workers = 1, .reservoir_slots = 1, .ring_slots = 64,
                                     .journal_slots = 64, .table_slots = 0 };
    uint64_t size = (uint64_t)segment_size(&limits);
    void *base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    void *copy = aligned_alloc(64, size);
    if (segment_format(base, size, &limits, "steps", (uint64_t)getpid(), 1) != 0)
        return 3;
    memcpy(&header, base, sizeof header);
    publish(base, 1);
    publish(base, 2);

    pid_t child = fork();
    if (child == 0) {
        if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) != 0)
            _exit(NO_PTRACE);
        raise(SIGSTOP);
        publish(base, 3);
        _exit(0);
    }
    int status;
    waitpid(child, &status, 0);
    if (!WIFSTOPPED(status)) {
        fprintf(stderr, "ptrace: not permitted here\n");
        return NO_PTRACE;
    }
    long long steps = 0, old = 0, new = 0, odd = 0;
    while (ptrace(PTRACE_SINGLESTEP, child, NULL, NULL) == 0 && waitpid(child, &status, 0) == child && WIFSTOPPED(status)) {
        steps++;
        memcpy(copy, base, size);
        uint64_t found = read_whole(copy, steps);
        if (found != 2 && found != 3)
            fail("an older payload", steps, (long long)found);
        *(found == 2 ? &old : &new) += 1;
        const struct block *block = (const void *)((const char *)copy + header.off_directive);
        for (int i = 0; i < 2; i++)
            odd += (long long)(((const struct block_buffer *)(const void *)((const char *)copy + block->off_buffer[i]))->sequence & 1u);
        for (uint64_t k = 4; k < 7; k++) {
            publish(copy, k);
            if (read_whole(copy, steps) != k)
                fail("the successor's payload is not read", steps, (long long)k);
        }
    }
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0 || read_whole(base, steps) != 3)
        fail("the child did not publish", steps, status);
    printf("%lld steps: %lld before, %lld after, %lld with a buffer half written\n", steps, old, new, odd);
    return old > 0 && new > 0 && odd > 0 ? 0 : 1;
}
