/* Auctions the tasks of a round, one after another (rounds.h). What a bid takes from the server's load is kept per server and
 * renewed only for those that were assigned work, so that an auction is one multiply-add a server and a search for the two
 * lowest.
 */
#include "rounds.h"

#include "../core/rng.h"
#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>

#define CLAMP 1000.0
#define CAPACITY_SCALE 200.0

struct columns {
    double *base;   /* s·ρ */
    double *factor; /* (1 + r·max(0, ρ − t)) · neural */
    double *tail;   /* 1 + c/200 */
    double *ratio;  /* ρ */
    double *bid;
};

struct pick {
    uint32_t server; /* ROUND_NOBODY: nobody was asked */
    double bid, price;
};

static struct columns columns_of(const struct round_farm *f)
{
    double *s = f->scratch;
    size_t n = f->servers;
    return (struct columns){ .base = s, .factor = s + n, .tail = s + 2 * n, .ratio = s + 3 * n, .bid = s + 4 * n };
}

/* Renew what server i's bids take from its load. */
static void reprice(const struct round_farm *f, const struct columns *c, uint32_t i)
{
    double ratio = f->load[i] / f->capacity[i];
    ratio = ratio < 1.0 ? ratio : 1.0;
    double above = ratio - f->target[i];
    c->ratio[i] = ratio;
    c->base[i] = f->sensitivity[i] * ratio;
    c->factor[i] = (1.0 + f->risk_aversion[i] * (above > 0.0 ? above : 0.0)) * f->neural[i];
}

/* Every server's bid for a task of this load. */
static void ask(const struct round_farm *f, const struct columns *c, double load)
{
    const double *restrict base = c->base, *restrict factor = c->factor, *restrict tail = c->tail;
    double *restrict bid = c->bid;
    uint32_t n = f->servers;
    if (f->noise > 0.0) {
        uint32_t *restrict lanes = f->lanes;
        double scale = f->noise * 0x1p-24;
        for (uint32_t i = 0; i < n; i++) { /* xorshift32 (Marsaglia, 2003), a generator a server: vectorised */
            uint32_t x = lanes[i];
            x ^= x << 13;
            x ^= x >> 17;
            x ^= x << 5;
            lanes[i] = x;
            double asked = ((base[i] + load) * factor[i] + (double)(int32_t)(x >> 8) * scale) * tail[i];
            bid[i] = asked < CLAMP ? asked : CLAMP;
        }
        return;
    }
    for (uint32_t i = 0; i < n; i++) {
        double asked = (base[i] + load) * factor[i] * tail[i];
        bid[i] = asked < CLAMP ? asked : CLAMP;
    }
}

/* The lowest bid and the second-lowest; equal ones draw lots. An infinite bid is none. */
static struct pick lowest(const double *bid, uint32_t n, struct rng *rng)
{
    double low[4] = { INFINITY, INFINITY, INFINITY, INFINITY };
    uint32_t i = 0;
    for (; i + 4 <= n; i += 4)
        for (uint32_t k = 0; k < 4; k++)
            low[k] = bid[i + k] < low[k] ? bid[i + k] : low[k];
    for (; i < n; i++)
        low[0] = bid[i] < low[0] ? bid[i] : low[0];
    double least = fmin(fmin(low[0], low[1]), fmin(low[2], low[3]));

    struct pick pick = { .server = ROUND_NOBODY, .bid = least, .price = INFINITY };
    uint32_t equal = 0;
    for (i = 0; i < n && least < INFINITY; i++) {
        if (bid[i] == least) {
            if (++equal > 1)
                pick.price = least;
            if (equal == 1 || rng_below(rng, equal) == 0)
                pick.server = i;
        } else if (bid[i] < pick.price) {
            pick.price = bid[i];
        }
    }
    return pick;
}

/* Find the partners of an overloaded winner: those of its coalition below the threshold, the least busy first. */
static void find_partners(const struct round_farm *f, const struct columns *c, struct round_award *a)
{
    while (a->partners < f->partners) {
        uint32_t best = ROUND_NOBODY;
        for (uint32_t i = 0; i < f->servers; i++) {
            if (f->coalition[i] != f->coalition[a->server] || i == a->server || c->ratio[i] >= f->partner_below)
                continue;
            uint32_t taken = 0;
            for (uint32_t p = 0; p < a->partners; p++)
                taken |= a->partner[p] == i;
            if (!taken && (best == ROUND_NOBODY || c->ratio[i] < c->ratio[best]))
                best = i;
        }
        if (best == ROUND_NOBODY)
            return;
        a->partner[a->partners++] = best;
    }
}

static double spare(const struct round_farm *f, uint32_t i)
{
    double left = f->capacity[i] - f->load[i];
    return left > 0.0 ? left : 0.0;
}

/* Say who does which part of a task that server won, and when the last part is done. */
static void plan(const struct round_farm *f, const struct columns *c, const struct round_task *t, const struct pick *pick,
                 struct round_award *a)
{
    a->server = pick->server;
    a->bid = pick->bid;
    a->price = pick->price;
    a->partners = 0;
    if (c->ratio[a->server] > f->overload)
        find_partners(f, c, a);
    uint32_t members = 1 + a->partners;
    double whole = spare(f, a->server);
    for (uint32_t p = 0; p < a->partners; p++)
        whole += spare(f, a->partner[p]);
    a->completion = 0.0;
    for (uint32_t m = 0; m < members; m++) {
        uint32_t i = m ? a->partner[m - 1] : a->server;
        /* The spare-capacity game is additive: a member's Shapley value is what it has to spare. */
        bool by_value = f->split == ROUND_SPLIT_SHAPLEY && whole > 0.0;
        a->share[m] = by_value ? spare(f, i) / whole : 1.0 / members;
        if (a->share[m] > 0.0)
            a->completion = fmax(a->completion, (f->load[i] + t->work * a->share[m]) / f->rate[i]);
    }
    a->completion += t->waited;
}

/* Take those out of the bids who alone would be late with the task; false: everybody would. */
static bool only_those_in_time(const struct round_farm *f, const struct columns *c, const struct round_task *t)
{
    bool any = false;
    for (uint32_t i = 0; i < f->servers; i++) {
        bool in_time = t->waited + (f->load[i] + t->work) / f->rate[i] <= t->latency;
        any |= in_time;
        if (!in_time)
            c->bid[i] = INFINITY;
    }
    return any;
}

static void assign(const struct round_farm *f, const struct columns *c, const struct round_task *t,
                   const struct round_award *a)
{
    for (uint32_t m = 0; m <= a->partners; m++) {
        uint32_t i = m ? a->partner[m - 1] : a->server;
        f->load[i] += t->work * a->share[m];
        reprice(f, c, i);
    }
}

/* Hold one auction: award the task or, a bronze one above the reserve, defer it. */
static void hold(const struct round_farm *f, const struct columns *c, struct rng *rng, const struct round_task *t,
                 struct round_award *a)
{
    memset(a, 0, sizeof *a);
    ask(f, c, t->load);
    struct pick pick = lowest(c->bid, f->servers, rng);
    plan(f, c, t, &pick, a);
    if (f->classes && t->sla == ROUND_GOLD && a->completion > t->latency && only_those_in_time(f, c, t)) {
        uint32_t refused = pick.server;
        pick = lowest(c->bid, f->servers, rng);
        plan(f, c, t, &pick, a);
        a->flags |= pick.server != refused ? ROUND_OUTBID : 0;
    }
    if (f->reserve > 0.0 && a->bid > f->reserve) {
        if (f->classes && t->sla == ROUND_BRONZE && t->deferrals < f->deferrals) {
            a->flags |= ROUND_DEFERRED;
            a->server = ROUND_NOBODY;
            a->partners = 0;
            return;
        }
        a->flags |= ROUND_ABOVE;
    }
    a->flags |= a->partners ? ROUND_COALITION : 0;
    a->flags |= a->completion > t->latency ? ROUND_LATE : 0;
    assign(f, c, t, a);
}

static void count(const struct round_task *t, const struct round_award *a, struct round_sums *s)
{
    s->auctions[t->sla]++;
    if (a->flags & ROUND_DEFERRED) {
        s->deferred++;
        return;
    }
    s->awards[t->sla]++;
    s->bids += a->bid;
    if (a->price < INFINITY) {
        s->prices += a->price;
        s->priced++;
    }
    s->completions[t->sla] += a->completion;
    s->misses[t->sla] += (a->flags & ROUND_LATE) != 0;
    s->above[t->sla] += (a->flags & ROUND_ABOVE) != 0;
    s->coalitions += (a->flags & ROUND_COALITION) != 0;
    s->outbid += (a->flags & ROUND_OUTBID) != 0;
    s->normal += !(a->flags & ~(uint32_t)ROUND_LATE);
}

int round_auction(struct round_farm *farm, const struct round_task *tasks, uint32_t n, struct round_award *awards,
                  struct round_sums *sums)
{
    if (!farm->servers || farm->partners > ROUND_PARTNERS)
        return -EINVAL;
    for (uint32_t i = 0; i < n; i++)
        if (tasks[i].sla >= ROUND_CLASSES)
            return -EINVAL;
    const struct columns c = columns_of(farm);
    struct rng rng;
    memcpy(rng.s, farm->random, sizeof rng.s);
    for (uint32_t i = 0; i < farm->servers; i++) {
        c.tail[i] = 1.0 + farm->capacity[i] / CAPACITY_SCALE;
        reprice(farm, &c, i);
    }
    for (uint32_t i = 0; i < n; i++) {
        hold(farm, &c, &rng, &tasks[i], &awards[i]);
        count(&tasks[i], &awards[i], sums);
    }
    memcpy(farm->random, rng.s, sizeof rng.s);
    return 0;
}
