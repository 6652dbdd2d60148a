/* Rule wrr: smooth weighted round robin, as nginx and LVS have it: each turn every server gains its weight, the one with most
 * takes the flow and pays the sum of the weights. Within any run of flows each server's share is as even as can be.
 *
 * Weights are first scaled to sum to WRR_TURN. A key is minus what the server has gained, so that the shared scan for the
 * least finds the winner; of equals the lowest slot wins. A server that may not take flows neither gains nor pays.
 * In slow start a server gains its weight times its ramp.
 *
 * Always: what the servers have gained sums to zero at each new table, and stays below WRR_TURN times the harmonic number of n.
 */
#include "core_private.h"

#define WRR_TURN (1 << 24)

static void wrr_prepare(struct balancer *b, struct book *k, const struct directive *d)
{
    share_weights(b, k, d);
    double sum = 0.0;
    int64_t gained = 0;
    for (uint32_t i = 0; i < b->n_slots; i++) {
        sum += (double)k->weight[i];
        k->credit[i] = k->key[i] == KEY_NONE ? k->credit[i] : k->key[i];
        gained += k->credit[i];
    }
    int32_t mean = (int32_t)(gained / (int64_t)(b->n_slots ? b->n_slots : 1));
    for (uint32_t i = 0; i < b->n_slots; i++) {
        double share = sum > 0.0 ? (double)k->weight[i] / sum * WRR_TURN : 0.0;
        k->step_full[i] = share <= 0.0 ? 0 : share < 1.0 ? 1 : (int32_t)(share + 0.5);
        k->credit[i] -= mean;
        k->key[i] = KEY_NONE;
        k->step[i] = 0;
    }
    k->turn = 0;
}

static void wrr_rekey(const struct balancer *b, struct book *k, uint32_t i, uint32_t n)
{
    int32_t step = has_room(b, i, n) ? k->step_full[i] : 0;
    if (step && b->ramp[i] < 1.0f) {
        step = (int32_t)((float)step * b->ramp[i]);
        step = step ? step : 1;
    }
    if (!step && k->key[i] != KEY_NONE) {
        k->credit[i] = k->key[i];
        k->key[i] = KEY_NONE;
    } else if (step && k->key[i] == KEY_NONE) {
        k->key[i] = k->credit[i];
    }
    k->turn += step - k->step[i];
    k->step[i] = step;
}

static struct award wrr_dispatch(struct balancer *b, struct book *k, const struct flow_key *key)
{
    (void)key;
    if (!k->turn)
        return share_draw(b, k);
    struct award award = award_nobody();
    int32_t least = b->scan->turn(k->key, k->step, b->padded);
    award.server = b->scan->find(k->key, b->padded, least, 0);
    k->key[award.server] += (int32_t)k->turn;
    return award;
}

const struct rule rule_wrr = { .name = "wrr", .prepare = wrr_prepare, .rekey = wrr_rekey, .dispatch = wrr_dispatch };
