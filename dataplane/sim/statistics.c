/* See statistics.h. Sums run over four lanes in a fixed order, so that every compiler adds alike and may use vectors. */
#include "statistics.h"
#include <math.h>
#include <string.h>

/* p90: the least value at which this share of the weight is reached; the hair as in features.py. */
#define SHARE (0.9 - 1e-9)
/* Half lives after which the reference is moved, long before 2^x overflows. */
#define REFERENCE_MAX 256.0
/* Slots of a reservoir at most, and one more for the scan to write to. */
#define SLOTS_MAX 4097

uint64_t statistics_size(uint32_t slots)
{
    uint64_t order = (slots * sizeof(uint16_t) + 7) / 8 * 8;
    return slots * sizeof(double) + order;
}

void statistics_place(struct statistics *s, uint32_t slots, void *memory)
{
    s->weight = memory;
    s->order = (uint16_t *)(void *)(s->weight + slots);
    statistics_reset(s);
}

void statistics_reset(struct statistics *s)
{
    s->held = 0;
    s->id = s->count = s->looked_ns = 0;
    memset(s->value, 0, sizeof s->value);
}

static double weight_at(const struct statistics *s, uint64_t time_ns, double half_life_ns)
{
    double after = time_ns >= s->reference_ns ? (double)(time_ns - s->reference_ns) : -(double)(s->reference_ns - time_ns);
    return exp2(after / half_life_ns);
}

/* Take a slot out of the first n of the order. */
static void order_remove(struct statistics *s, uint32_t n, uint16_t slot)
{
    uint32_t at = 0;
    while (s->order[at] != slot)
        at++;
    memmove(s->order + at, s->order + at + 1, (n - at - 1) * sizeof *s->order);
}

/* Sort a slot into the first n of the order, behind its equals. */
static void order_insert(struct statistics *s, const struct sample *sample, uint32_t n, uint16_t slot)
{
    uint64_t value = sample[slot].value_ns;
    uint32_t from = 0, to = n;
    while (from < to) {
        uint32_t middle = (from + to) / 2;
        if (sample[s->order[middle]].value_ns <= value)
            from = middle + 1;
        else
            to = middle;
    }
    memmove(s->order + from + 1, s->order + from, (n - from) * sizeof *s->order);
    s->order[from] = slot;
}

/* Slots below held that changed since the last look, into slot; returns how many. */
static uint32_t find_changed(const struct statistics *s, const struct sample *sample, uint32_t held, uint16_t *slot)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < s->held; i++) {
        slot[n] = (uint16_t)i; /* without a branch, which would be mispredicted at every change */
        n += sample[i].time_ns >= s->looked_ns;
    }
    for (uint32_t i = s->held; i < held; i++)
        slot[n++] = (uint16_t)i;
    return n;
}

/* Take over samples that changed. All of them leave the order before the first comes back: it is sorted meanwhile. */
static void take_changes(struct statistics *s, const struct sample *sample, uint32_t held, const uint16_t *slot, uint32_t n,
                         double half_life_ns)
{
    uint32_t left = s->held;
    for (uint32_t i = 0; i < n && slot[i] < s->held; i++)
        order_remove(s, left--, slot[i]);
    for (uint32_t i = 0; i < n; i++) {
        s->weight[slot[i]] = weight_at(s, sample[slot[i]].time_ns, half_life_ns);
        order_insert(s, sample, left++, slot[i]);
    }
    s->held = held;
}

static double lanes_sum(const double lane[4])
{
    return (lane[0] + lane[1]) + (lane[2] + lane[3]);
}

static void compute(struct statistics *s, const struct sample *sample)
{
    uint32_t n = s->held, whole = n / 4 * 4;
    double sum[4] = { 0 }, weights[4] = { 0 }, weighted[4] = { 0 }, square[4] = { 0 };
    for (uint32_t i = 0; i < whole; i += 4) {
        for (uint32_t lane = 0; lane < 4; lane++) {
            double v = (double)(int64_t)sample[i + lane].value_ns, w = s->weight[i + lane];
            sum[lane] += v;
            weights[lane] += w;
            weighted[lane] += w * v;
        }
    }
    for (uint32_t i = whole; i < n; i++) {
        double v = (double)(int64_t)sample[i].value_ns, w = s->weight[i];
        sum[0] += v;
        weights[0] += w;
        weighted[0] += w * v;
    }
    double mean = lanes_sum(sum) / n, total = lanes_sum(weights);
    for (uint32_t i = 0; i < whole; i += 4) {
        for (uint32_t lane = 0; lane < 4; lane++) {
            double d = (double)(int64_t)sample[i + lane].value_ns - mean;
            square[lane] += d * d;
        }
    }
    for (uint32_t i = whole; i < n; i++) {
        double d = (double)(int64_t)sample[i].value_ns - mean;
        square[0] += d * d;
    }
    /* From the top: what lies above the 90 % is a tenth of the list. */
    uint32_t at = n - 1;
    double above = 0, may = total - total * SHARE;
    while (at > 0 && above + s->weight[s->order[at]] <= may)
        above += s->weight[s->order[at--]];
    uint32_t first = (uint32_t)ceil(n * SHARE) - 1;
    s->value[STATISTIC_MEAN] = mean * 1e-9;
    s->value[STATISTIC_P90] = (double)sample[s->order[first]].value_ns * 1e-9;
    s->value[STATISTIC_STD] = sqrt(lanes_sum(square) / n) * 1e-9;
    s->value[STATISTIC_MEAN_DECAY] = total > 0 ? lanes_sum(weighted) / total * 1e-9 : s->value[STATISTIC_MEAN];
    s->value[STATISTIC_P90_DECAY] = (double)sample[s->order[at]].value_ns * 1e-9;
}

void statistics_look(struct statistics *s, const struct reservoir *r, uint32_t slots, uint64_t id, uint64_t now_ns,
                     double half_life_ns)
{
    const struct sample *sample = (const struct sample *)(const void *)(r + 1);
    if (r->id != id || id == 0 || r->count == 0) {
        statistics_reset(s);
        return;
    }
    if (s->id != id || r->count < s->count)
        statistics_reset(s);
    if (r->count == s->count)
        return;
    uint32_t held = r->count < slots ? (uint32_t)r->count : slots;
    uint16_t changed[SLOTS_MAX];
    uint32_t n = find_changed(s, sample, held, changed);
    uint64_t newest = 0;
    for (uint32_t i = 0; i < n; i++)
        newest = sample[changed[i]].time_ns > newest ? sample[changed[i]].time_ns : newest;
    if (s->held == 0) {
        s->reference_ns = newest;
    } else if (weight_at(s, newest, half_life_ns) > exp2(REFERENCE_MAX)) {
        s->reference_ns = newest;
        for (uint32_t i = 0; i < s->held; i++)
            s->weight[i] = weight_at(s, sample[i].time_ns, half_life_ns);
    }
    take_changes(s, sample, held, changed, n, half_life_ns);
    s->id = id;
    s->count = r->count;
    s->looked_ns = now_ns;
    compute(s, sample);
}
