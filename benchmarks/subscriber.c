/* subscriber PORT ID TOPIC COUNT: receives so many QoS 1 messages on a session that stays, acknowledges them, and does nothing with them.
   It says "subscribed", then the seconds from the first message to the last, and waits to be ended. */
#include <mosquitto.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static int count, seen;
static double first;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void connected(struct mosquitto *client, void *topic, int code) { mosquitto_subscribe(client, NULL, topic, 1); }

static void subscribed(struct mosquitto *client, void *topic, int id, int many, const int *qos) { puts("subscribed"); fflush(stdout); }

static void message(struct mosquitto *client, void *topic, const struct mosquitto_message *message) {
    if (seen++ == 0) first = now();
    if (seen == count) { printf("%f\n", now() - first); fflush(stdout); }
}

int main(int argc, char **argv) {
    if (argc != 5) return 2;
    count = atoi(argv[4]);
    mosquitto_lib_init();
    struct mosquitto *client = mosquitto_new(argv[2], false, argv[3]);
    mosquitto_connect_callback_set(client, connected);
    mosquitto_subscribe_callback_set(client, subscribed);
    mosquitto_message_callback_set(client, message);
    if (mosquitto_connect(client, "127.0.0.1", atoi(argv[1]), 60)) return 1;
    return mosquitto_loop_forever(client, -1, 1);
}
