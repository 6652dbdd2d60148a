/* Where flows come from: the arrival process, the demands and the clients of one simulation.
 *
 * Processes whose rate varies are thinned (Lewis and Shedler, "Simulation of nonhomogeneous Poisson processes by thinning",
 * Naval Research Logistics 26(3), 1979): candidates come at the highest rate, each is kept with the probability of the present one.
 * Every candidate is an instant of the simulation of its own, so a change of the rate may simply draw the next one anew: the
 * exponential has no memory.
 *
 * Always: what is drawn here depends on the seed and the scheduled events alone.
 */
#include "source.h"
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define TAU 6.283185307179586

static uint64_t later(uint64_t now_ns, double gap_ns)
{
    /* A rate of zero makes the gap infinite. */
    return gap_ns < 0x1p62 ? now_ns + (uint64_t)(gap_ns + 0.5) : NEVER;
}

static double rate_per_ns(const struct source *s, uint32_t i)
{
    return s->config.rate_per_s[i] * 1e-9 * s->rate_factor;
}

/* Rate at now_ns of a thinned process as a share of its highest. */
static double thinned_share(const struct source *s, uint64_t now_ns)
{
    const struct sim_config *c = &s->config;
    double rate;
    if (c->arrival == SIM_SINE)
        rate = c->rate_per_s[0] + c->rate_per_s[1] * sin(TAU * fmod((double)now_ns / c->phase_ns[0], 1.0));
    else
        rate = c->profile_per_s[(uint64_t)((double)now_ns / c->phase_ns[0]) % c->n_profile];
    return rate * 1e-9 / s->rate_max;
}

/* Draw the next candidate after now_ns. */
static void schedule(struct source *s, uint64_t now_ns)
{
    const struct sim_config *c = &s->config;
    if (c->flows_max > 0 && s->made >= c->flows_max) {
        s->next_ns = NEVER;
        return;
    }
    switch (c->arrival) {
    case SIM_POISSON:
        s->next_ns = later(now_ns, random_exponential(&s->arrivals) / rate_per_ns(s, 0));
        break;
    case SIM_SINE:
    case SIM_PROFILE:
        s->next_ns = later(now_ns, random_exponential(&s->arrivals) / (s->rate_max * s->rate_factor));
        break;
    case SIM_MMPP:
        s->next_ns = later(now_ns, random_exponential(&s->arrivals) / (rate_per_ns(s, s->state) + 1.0 / c->phase_ns[s->state]));
        break;
    case SIM_ON_OFF:
        s->next_ns = later(now_ns, random_exponential(&s->arrivals) / rate_per_ns(s, s->state));
        if (s->next_ns > s->phase_end_ns)
            s->next_ns = s->phase_end_ns;
        break;
    default: /* trace: its own gaps, on a clock that runs rate_factor times as fast */
        if (s->candidate >= c->n_times) {
            s->next_ns = NEVER;
        } else {
            uint64_t last = s->candidate > 0 ? c->times_ns[s->candidate - 1] : 0, gap = c->times_ns[s->candidate] - last;
            s->next_ns = s->rate_factor == 1.0 ? now_ns + gap : later(now_ns, (double)gap / s->rate_factor);
        }
    }
}

/* Is the candidate at now_ns an arrival? */
static bool candidate_arrives(struct source *s, uint64_t now_ns)
{
    const struct sim_config *c = &s->config;
    switch (c->arrival) {
    case SIM_SINE:
    case SIM_PROFILE:
        return random_unit(&s->arrivals) < thinned_share(s, now_ns);
    case SIM_MMPP: {
        double rate = rate_per_ns(s, s->state);
        if (random_unit(&s->arrivals) * (rate + 1.0 / c->phase_ns[s->state]) < rate)
            return true;
        s->state ^= 1;
        return false;
    }
    case SIM_ON_OFF:
        if (now_ns < s->phase_end_ns)
            return true;
        s->state ^= 1;
        s->phase_end_ns = later(now_ns, c->phase_ns[s->state]);
        return false;
    default:
        return true;
    }
}

static double draw_work(struct source *s)
{
    const double *d = s->config.demands;
    struct rng *r = &s->demands;
    switch (s->config.demand) {
    case SIM_EXPONENTIAL:
        return d[0] * random_exponential(r);
    case SIM_DETERMINISTIC:
        return d[0];
    case SIM_LOGNORMAL:
        return exp(d[0] + d[1] * random_normal(r));
    case SIM_HYPEREXPONENTIAL: {
        double mean = random_unit(r) < d[0] ? d[1] : d[2];
        return mean * random_exponential(r);
    }
    case SIM_BOUNDED_PARETO: /* inverse of F(x) = (1 - (L/x)^a) / (1 - (L/H)^a); demands[2] was replaced by 1 - (L/H)^a */
        return d[1] * pow(1.0 - random_unit(r) * d[2], -1.0 / d[0]);
    default:
        return s->config.works_ns[s->made % s->config.n_works];
    }
}

bool source_take(struct source *s, struct arrival *a)
{
    const struct sim_config *c = &s->config;
    uint64_t now_ns = s->next_ns;
    bool arrives = candidate_arrives(s, now_ns);
    if (arrives) {
        a->work_ns = draw_work(s);
        if (c->keys != NULL)
            a->key = c->keys[s->candidate];
        else
            a->key = c->clients > 0 ? rng_mix(random_below(&s->clients, c->clients)) : rng_next(&s->clients);
        if (c->n_balancers == 1)
            a->balancer = 0;
        else if (c->split == SIM_SPLIT_TRACE)
            a->balancer = c->balancers[s->candidate];
        else if (c->split == SIM_SPLIT_HASH)
            /* Mixed once more: the balancers' own tables see the key, and must not find it sorted. */
            a->balancer = (uint32_t)(((unsigned __int128)rng_mix(a->key) * c->n_balancers) >> 64);
        else
            a->balancer = (uint32_t)random_below(&s->split, c->n_balancers);
        s->made++;
        s->candidate++;
    }
    schedule(s, now_ns);
    return arrives;
}

void source_set_rate(struct source *s, uint64_t now_ns, double factor)
{
    double old = s->rate_factor;
    s->rate_factor = factor;
    if (s->config.arrival != SIM_ARRIVAL_TRACE)
        schedule(s, now_ns);
    else if (s->next_ns != NEVER && factor > 0)
        s->next_ns = later(now_ns, (double)(s->next_ns - now_ns) * old / factor);
}

/* Copy n elements of size bytes into *array; nothing when there are none. */
static int copy(const void **array, uint64_t n, size_t size)
{
    const void *from = *array;
    *array = NULL;
    if (from == NULL || n == 0)
        return 0;
    if (n > SIZE_MAX / size)
        return -EINVAL;
    void *to = malloc(n * size);
    if (to == NULL)
        return -ENOMEM;
    memcpy(to, from, n * size);
    *array = to;
    return 0;
}

static bool is_positive(double x)
{
    return x > 0 && isfinite(x);
}

static bool arrivals_valid(const struct sim_config *c)
{
    bool phases = is_positive(c->phase_ns[0]) && is_positive(c->phase_ns[1]);
    switch (c->arrival) {
    case SIM_POISSON:
        return is_positive(c->rate_per_s[0]);
    case SIM_SINE:
        return is_positive(c->rate_per_s[0]) && isfinite(c->rate_per_s[1]) && is_positive(c->phase_ns[0]);
    case SIM_MMPP:
    case SIM_ON_OFF:
        return phases && c->rate_per_s[0] >= 0 && c->rate_per_s[1] >= 0 && is_positive(c->rate_per_s[0] + c->rate_per_s[1]);
    case SIM_PROFILE: {
        bool any = false;
        for (uint64_t i = 0; c->profile_per_s != NULL && i < c->n_profile; i++) {
            if (!(c->profile_per_s[i] >= 0) || !isfinite(c->profile_per_s[i]))
                return false;
            any |= c->profile_per_s[i] > 0;
        }
        return any && is_positive(c->phase_ns[0]);
    }
    case SIM_ARRIVAL_TRACE:
        if (c->times_ns == NULL)
            return false;
        for (uint64_t i = 0; i < c->n_times; i++) {
            if (c->times_ns[i] >= 1ULL << 62 || (i > 0 && c->times_ns[i] < c->times_ns[i - 1]))
                return false;
        }
        return true;
    default:
        return false;
    }
}

static bool demands_valid(const struct sim_config *c)
{
    const double *d = c->demands;
    switch (c->demand) {
    case SIM_EXPONENTIAL:
    case SIM_DETERMINISTIC:
        return is_positive(d[0]);
    case SIM_LOGNORMAL:
        return isfinite(d[0]) && d[1] >= 0 && isfinite(d[1]);
    case SIM_HYPEREXPONENTIAL:
        return d[0] >= 0 && d[0] <= 1 && is_positive(d[1]) && is_positive(d[2]);
    case SIM_BOUNDED_PARETO:
        return is_positive(d[0]) && is_positive(d[1]) && isfinite(d[2]) && d[2] >= d[1];
    case SIM_DEMAND_TRACE:
        for (uint64_t i = 0; c->works_ns != NULL && i < c->n_works; i++) {
            if (!(c->works_ns[i] >= 0) || !isfinite(c->works_ns[i]))
                return false;
        }
        return c->works_ns != NULL && c->n_works > 0;
    default:
        return false;
    }
}

static bool split_valid(const struct sim_config *c)
{
    bool trace = c->arrival == SIM_ARRIVAL_TRACE;
    if (c->split > SIM_SPLIT_TRACE || (c->split == SIM_SPLIT_TRACE && (!trace || c->balancers == NULL)))
        return false;
    for (uint64_t i = 0; c->split == SIM_SPLIT_TRACE && i < c->n_times; i++) {
        if (c->balancers[i] >= c->n_balancers)
            return false;
    }
    return c->keys == NULL || trace;
}

int source_init(struct source *s, const struct sim_config *config)
{
    if (!arrivals_valid(config) || !demands_valid(config) || !split_valid(config))
        return -EINVAL;
    memset(s, 0, sizeof *s);
    s->config = *config;
    struct sim_config *c = &s->config;
    int error = 0, e;
    /* Each call first clears its pointer, so that source_free() after a failure frees no array of the caller's. */
    if ((e = copy((const void **)&c->profile_per_s, c->n_profile, sizeof(double))) != 0)
        error = e;
    if ((e = copy((const void **)&c->times_ns, c->n_times, sizeof(uint64_t))) != 0)
        error = e;
    if ((e = copy((const void **)&c->works_ns, c->n_works, sizeof(double))) != 0)
        error = e;
    if ((e = copy((const void **)&c->keys, c->n_times, sizeof(uint64_t))) != 0)
        error = e;
    if ((e = copy((const void **)&c->balancers, c->n_times, sizeof(uint32_t))) != 0)
        error = e;
    if (error != 0) {
        source_free(s);
        return error;
    }
    rng_seed(&s->arrivals, c->seed ^ rng_mix(1));
    rng_seed(&s->demands, c->seed ^ rng_mix(2));
    rng_seed(&s->clients, c->seed ^ rng_mix(3));
    rng_seed(&s->split, c->seed ^ rng_mix(4));
    s->rate_factor = 1.0;
    if (c->arrival == SIM_SINE)
        s->rate_max = (c->rate_per_s[0] + fabs(c->rate_per_s[1])) * 1e-9;
    for (uint64_t i = 0; c->arrival == SIM_PROFILE && i < c->n_profile; i++)
        s->rate_max = fmax(s->rate_max, c->profile_per_s[i] * 1e-9);
    if (c->demand == SIM_BOUNDED_PARETO)
        c->demands[2] = 1.0 - pow(c->demands[1] / c->demands[2], c->demands[0]);
    s->phase_end_ns = later(0, c->phase_ns[0]);
    schedule(s, 0);
    return 0;
}

void source_free(struct source *s)
{
    free((void *)s->config.profile_per_s);
    free((void *)s->config.times_ns);
    free((void *)s->config.works_ns);
    free((void *)s->config.keys);
    free((void *)s->config.balancers);
}
