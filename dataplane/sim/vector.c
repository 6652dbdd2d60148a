/* See vector.h. A step costs three things of like size: the flows, the directive (made, checked and adopted as a live one is)
 * and the features.
 */
#include "vector.h"
#include "../../shm_layout/access.h"
#include "statistics.h"
#include "world.h"
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define BID_MAX 1e30f
/* So that no feature leaves its column of the observation space. */
#define SECONDS_MAX 1e6

struct row {
    uint64_t sequence, epoch;
};

struct vector {
    struct vector_config config;
    struct sim **sims;
    struct row *rows;
    struct statistics *statistics;  /* [rows][servers][METRICS] */
    uint8_t *memory;                /* the statistics' arrays */
    uint8_t *payload;               /* a directive with all its arrays, as arrays_of() has them */
    uint32_t *scratch;              /* of alias_build() */
};

/* ---- curves ---- */

static float curve_between(const float *curve, double n)
{
    if (n >= IN_FLIGHT_MAX)
        n = IN_FLIGHT_MAX;
    uint32_t bin = curve_bin((uint32_t)n), left = bin < CURVE_POINTS - 1 ? bin : CURVE_POINTS - 2;
    uint32_t from = curve_bin_low(left), to = curve_bin_low(left + 1);
    double part = (n - from) / (double)(to - from);
    return (float)(curve[left] + ((double)curve[left + 1] - curve[left]) * part);
}

void curves_correct(const float *base, const double *correction, uint32_t n, float *out)
{
    double seen = correction[0], idle = exp(correction[1]) - 1.0;
    for (uint32_t i = 0; i < n; i++, base += CURVE_POINTS, out += CURVE_POINTS) {
        double slower = exp(-correction[2 + 2 * i]), stretch = exp(seen - correction[3 + 2 * i]), before = 0;
        if (stretch == 1.0 && slower == 1.0 && idle == 0.0) {
            memcpy(out, base, CURVE_POINTS * sizeof *out);
            continue;
        }
        double constant = idle * base[0];
        for (uint32_t point = 0; point < CURVE_POINTS; point++) {
            double bid = slower * (curve_between(base, curve_bin_low(point) * stretch) + constant);
            bid = bid > before ? bid : before; /* rounding may make it fall by an ulp */
            bid = bid < BID_MAX ? bid : BID_MAX;
            out[point] = (float)bid;
            before = bid;
        }
    }
}

static void curves_from_weights(const struct vector_config *c, const double *weights, uint32_t n, float *out)
{
    for (uint32_t i = 0; i < n; i++, out += CURVE_POINTS) {
        double each = weights[i] > 0 ? 1.0 / weights[i] : 0;
        for (uint32_t point = 0; point < CURVE_POINTS; point++) {
            double bid = each > 0 ? (c->slope * curve_bin_low(point) + c->constant) * each : BID_MAX;
            out[point] = bid < BID_MAX ? (float)bid : BID_MAX;
        }
    }
}

/* ---- directives ---- */

/* Where the arrays of a directive for n servers lie. */
struct arrays {
    uint64_t ids, weights, keep, other, curves, end;
};

static uint64_t rounded(uint64_t bytes)
{
    return (bytes + 7) / 8 * 8;
}

static struct arrays arrays_of(uint64_t n)
{
    struct arrays at = { .ids = sizeof(struct directive) };
    at.weights = at.ids + n * sizeof(uint64_t);
    at.keep = rounded(at.weights + n * sizeof(float));
    at.other = rounded(at.keep + n * sizeof(uint32_t));
    at.curves = rounded(at.other + n * sizeof(uint32_t));
    at.end = rounded(at.curves + n * CURVE_POINTS * sizeof(float));
    return at;
}

static int publish(struct vector *v, const struct vector_arrays *a, struct sim *sim, uint32_t row, uint32_t balancer)
{
    const struct vector_config *c = &v->config;
    struct directive *d = (struct directive *)(void *)v->payload;
    struct balancer *b = sim->balancers[balancer];
    uint32_t n = sim->config.n_servers, mode = a->mode[row];
    struct arrays at = arrays_of(n); /* not of c->n_servers: a segment has room for a directive of its own servers */
    uint64_t *ids = (uint64_t *)(void *)(v->payload + at.ids);
    float *weights = (float *)(void *)(v->payload + at.weights), *curves = (float *)(void *)(v->payload + at.curves);
    uint64_t width = c->n_servers, length;

    memset(d, 0, sizeof *d);
    d->sequence = ++v->rows[row].sequence;
    d->epoch = v->rows[row].epoch;
    d->issued_ns = sim_now_ns(sim);
    d->settings_version = balancer_settings(b)->version;
    memcpy(d->policy, "env", 4);
    d->n_servers = n;
    d->enforcing_percent = 100;
    d->off_ids = at.ids;
    for (uint32_t i = 0; i < n; i++)
        ids[i] = balancer_server(b, i)->id;
    if (mode == VECTOR_CURVES || mode == VECTOR_BIDS) {
        d->rule = RULE_BIDS;
        d->off_curves = at.curves;
        if (mode == VECTOR_CURVES)
            curves_correct(a->base + row * width * CURVE_POINTS, a->correction + row * (2 * width + 2), n, curves);
        else
            curves_from_weights(c, a->weights + row * width, n, curves);
        length = at.end;
    } else {
        d->rule = mode == VECTOR_ALIAS ? RULE_ALIAS : RULE_WRR;
        d->off_weights = at.weights;
        for (uint32_t i = 0; i < n; i++)
            weights[i] = (float)a->weights[row * width + i];
        if (mode == VECTOR_ALIAS) {
            d->off_alias_keep = at.keep;
            d->off_alias_other = at.other;
            int error = alias_build(weights, n, (uint32_t *)(void *)(v->payload + at.keep),
                                    (uint32_t *)(void *)(v->payload + at.other), v->scratch);
            if (error != 0)
                return error;
        }
        length = at.curves;
    }
    void *segment = sim->segments[balancer];
    const struct segment_header *h = segment;
    uint32_t reason;
    int error = segment_check_directive(v->payload, length, h->max_servers, h->table_slots, &reason);
    if (error == 0)
        error = segment_publish(segment, h->off_directive, v->payload, length, d->epoch);
    if (error == 0)
        segment_controller_beat(segment, d->issued_ns, 0, 0, 0);
    return error;
}

/* ---- what is read ---- */

static void read_active(const struct balancer *b, uint32_t n, uint8_t *active)
{
    uint8_t backup = 1;
    for (uint32_t i = 0; i < n; i++) {
        const struct server_entry *e = balancer_server(b, i);
        active[i] = e->id != 0 && e->state == SERVER_READY && e->health == HEALTH_UP && e->weight > 0;
        if (active[i] && e->backup == 0)
            backup = 0;
    }
    for (uint32_t i = 0; i < n; i++)
        active[i] = active[i] && (balancer_server(b, i)->backup != 0) <= backup;
}

static double bounded(double seconds)
{
    return seconds < SECONDS_MAX ? seconds : SECONDS_MAX;
}

/* The statistics of one metric, (servers,) rows of five columns; a server without samples has the mean of the others. */
static void read_metric(const struct vector *v, const struct sim *sim, uint32_t row, uint32_t balancer, uint32_t metric,
                        float *features)
{
    const struct vector_config *c = &v->config;
    const uint8_t *segment = sim->segments[balancer];
    const struct segment_header *h = (const void *)segment;
    double sum[STATISTICS] = { 0 };
    uint32_t known = 0;
    for (uint32_t i = 0; i < sim->config.n_servers; i++) {
        struct statistics *s = &v->statistics[((uint64_t)row * c->n_servers + i) * METRICS + metric];
        const struct reservoir *r = (const void *)(segment + segment_reservoir_offset(h, 0, i, metric));
        statistics_look(s, r, c->reservoir_slots, balancer_server(sim->balancers[balancer], i)->id, sim_now_ns(sim), c->half_life_ns);
        if (s->held == 0)
            continue;
        known++;
        for (uint32_t k = 0; k < STATISTICS; k++) {
            sum[k] += s->value[k];
            features[i * VECTOR_FEATURES + k] = (float)bounded(s->value[k]);
        }
    }
    for (uint32_t k = 0; k < STATISTICS; k++)
        sum[k] = known > 0 ? sum[k] / known : k == STATISTIC_STD ? 0.0 : c->prior_s;
    for (uint32_t i = 0; i < sim->config.n_servers; i++) {
        if (v->statistics[((uint64_t)row * c->n_servers + i) * METRICS + metric].held == 0)
            for (uint32_t k = 0; k < STATISTICS; k++)
                features[i * VECTOR_FEATURES + k] = (float)bounded(sum[k]);
    }
}

static void read_row(const struct vector *v, const struct vector_arrays *a, const struct sim *sim, uint32_t row, uint32_t balancer)
{
    uint64_t width = v->config.n_servers;
    uint32_t n = sim->config.n_servers;
    struct balancer *b = sim->balancers[balancer];
    float *features = a->features + row * width * VECTOR_FEATURES;
    double *counters = a->counters + row * width * VECTOR_COUNTERS;
    uint64_t *histogram = a->histogram != NULL ? a->histogram + (uint64_t)row * HISTOGRAM_BUCKETS : NULL;

    memset(features, 0, width * VECTOR_FEATURES * sizeof *features);
    memset(counters, 0, width * VECTOR_COUNTERS * sizeof *counters);
    memset(a->active + row * width, 0, width);
    read_active(b, n, a->active + row * width);
    for (uint32_t metric = 0; metric < METRICS; metric++)
        read_metric(v, sim, row, balancer, metric, features + 1 + metric * STATISTICS);
    if (histogram != NULL)
        memset(histogram, 0, HISTOGRAM_BUCKETS * sizeof *histogram);
    for (uint32_t i = 0; i < n; i++, features += VECTOR_FEATURES, counters += VECTOR_COUNTERS) {
        if (balancer_server(b, i)->id == 0) {
            memset(features, 0, VECTOR_FEATURES * sizeof *features);
            continue;
        }
        const struct server_stats *s = balancer_stats(b, i);
        features[0] = (float)balancer_in_flight(b, i);
        counters[0] = (double)s->flows_total;
        counters[1] = (double)(s->outcomes[OUTCOME_OK] + s->outcomes[OUTCOME_SERVER_5XX]);
        counters[2] = (double)s->fct_sum_ns * 1e-9;
        for (uint32_t outcome = OUTCOME_SERVER_5XX; outcome <= OUTCOME_SERVER_TIMEOUT; outcome++)
            counters[3] += (double)s->outcomes[outcome];
        for (uint32_t k = 0; histogram != NULL && k < HISTOGRAM_BUCKETS; k++)
            histogram[k] += s->fct_histogram[k];
    }
    a->settings_version[row] = balancer_settings(b)->version;
}

static void read_truth(const struct vector *v, const struct vector_arrays *a, const struct sim *sim, uint32_t replica)
{
    uint64_t width = v->config.n_servers;
    double *out = a->truth + replica * width * VECTOR_TRUTHS;
    memset(out, 0, width * VECTOR_TRUTHS * sizeof *out);
    for (uint32_t i = 0; i < sim->config.n_servers; i++, out += VECTOR_TRUTHS) {
        /* On a copy: looking on must not change the rounding of what follows. */
        struct server s = sim->servers[i];
        server_advance(&s, sim->now_ns);
        out[0] = s.in_server;
        out[1] = s.in_server < s.workers ? s.in_server : s.workers;
        out[2] = s.present ? s.workers : 0;
        out[3] = s.alive && s.present ? s.speed : 0.0;
        out[4] = s.busy_ns * 1e-9;
        out[5] = s.capacity_ns * 1e-9;
    }
}

/* ---- the vector ---- */

struct vector *vector_create(const struct vector_config *c)
{
    if (c->n_replicas < 1 || c->n_balancers < 1 || c->n_servers < 1 || c->n_servers > SERVERS_LIMIT || c->reservoir_slots < 1 ||
        c->reservoir_slots > 4096 || (uint64_t)c->n_replicas * c->n_balancers > 1u << 20 || !(c->half_life_ns > 0) ||
        !(c->prior_s >= 0) || !(c->slope > 0) || !(c->constant >= 0))
        return NULL;
    struct vector *v = calloc(1, sizeof *v);
    if (v == NULL)
        return NULL;
    uint64_t rows = (uint64_t)c->n_replicas * c->n_balancers, n = c->n_servers, each = statistics_size(c->reservoir_slots);
    uint64_t reservoirs = rows * n * METRICS;
    v->config = *c;
    v->sims = calloc(c->n_replicas, sizeof(struct sim *));
    v->rows = calloc(rows, sizeof *v->rows);
    v->statistics = calloc(reservoirs, sizeof *v->statistics);
    v->memory = malloc(reservoirs * each);
    v->payload = calloc(1, arrays_of(n).end);
    v->scratch = malloc(3 * n * sizeof *v->scratch);
    if (v->sims == NULL || v->rows == NULL || v->statistics == NULL || v->memory == NULL || v->payload == NULL ||
        v->scratch == NULL) {
        vector_destroy(v);
        return NULL;
    }
    for (uint64_t i = 0; i < reservoirs; i++)
        statistics_place(&v->statistics[i], c->reservoir_slots, v->memory + i * each);
    return v;
}

void vector_destroy(struct vector *v)
{
    if (v == NULL)
        return;
    free(v->sims);
    free(v->rows);
    free(v->statistics);
    free(v->memory);
    free(v->payload);
    free(v->scratch);
    free(v);
}

int vector_place(struct vector *v, uint32_t replica, struct sim *sim)
{
    const struct vector_config *c = &v->config;
    if (replica >= c->n_replicas)
        return -EINVAL;
    v->sims[replica] = NULL;
    if (sim == NULL)
        return 0;
    if (sim->config.n_balancers != c->n_balancers || sim->config.n_servers > c->n_servers)
        return -EINVAL;
    for (uint32_t b = 0; b < c->n_balancers; b++) {
        const struct segment_header *h = sim->segments[b];
        if (h->reservoir_slots != c->reservoir_slots)
            return -EINVAL;
        for (uint32_t other = 0; other < b; other++)
            if (sim->segments[other] == sim->segments[b])
                return -EINVAL;
        struct controller controller;
        int error = segment_read_controller(sim->segments[b], &controller);
        if (error != 0)
            return error;
        uint64_t row = (uint64_t)replica * c->n_balancers + b;
        v->rows[row] = (struct row){ .epoch = controller.epoch };
        for (uint64_t i = 0; i < (uint64_t)c->n_servers * METRICS; i++)
            statistics_reset(&v->statistics[row * c->n_servers * METRICS + i]);
    }
    v->sims[replica] = sim;
    return 0;
}

int vector_step(struct vector *v, const struct vector_arrays *a, uint64_t interval_ns, uint32_t *failed)
{
    uint32_t balancers = v->config.n_balancers;
    for (uint32_t r = 0; r < v->config.n_replicas; r++) {
        struct sim *sim = v->sims[r];
        if (a->run[r] == 0 || sim == NULL)
            continue;
        int error = 0;
        if (interval_ns > 0) {
            for (uint32_t b = 0; b < balancers && error == 0; b++)
                error = publish(v, a, sim, r * balancers + b, b);
            if (error == 0)
                error = sim_run(sim, sim->now_ns + interval_ns);
        }
        if (error < 0) {
            *failed = r;
            return error;
        }
        a->finished[r] = (uint8_t)(error == 1);
        a->now_ns[r] = sim->now_ns;
        for (uint32_t b = 0; b < balancers; b++)
            read_row(v, a, sim, r * balancers + b, b);
        read_truth(v, a, sim, r);
    }
    return 0;
}
