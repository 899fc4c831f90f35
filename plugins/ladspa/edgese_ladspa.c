/* LADSPA plugins "edgese_mono" and "edgese_stereo", on edgese_live. The weights are part of the library. */
#include "edgese_live.h"

#include <ladspa.h>
#include <stdio.h>
#include <stdlib.h>

enum { LIMIT, MIX, LATENCY, AUDIO }; /* ports; from AUDIO on the inputs, then the outputs */
enum { MOST = 2, PORTS = AUDIO + 2 * MOST };

/* The file that WEIGHTS names. */
__asm__(".section .rodata\n"
        ".balign 64\n"
        "edgese_weights_begin: .incbin \"" WEIGHTS "\"\n"
        "edgese_weights_end: .byte 0\n"
        ".previous\n");
extern const char edgese_weights_begin[] __attribute__((visibility("hidden")));
extern const char edgese_weights_end[] __attribute__((visibility("hidden")));

typedef struct {
    edgese_weights *weights;
    edgese_live *live;
    LADSPA_Data *ports[PORTS];
    unsigned channels;
} plugin;

static void cleanup(LADSPA_Handle handle)
{
    plugin *p = handle;
    edgese_live_stop(p->live);
    edgese_close(p->weights);
    free(p);
}

static LADSPA_Handle instantiate(const LADSPA_Descriptor *about, unsigned long rate_hz)
{
    char error[EDGESE_ERROR_SIZE] = "no memory";
    plugin *p = calloc(1, sizeof *p);
    if (p) {
        p->channels = (unsigned)(about->PortCount - AUDIO) / 2;
        p->weights = edgese_open_memory(edgese_weights_begin, (size_t)(edgese_weights_end - edgese_weights_begin), error);
        if (p->weights)
            p->live = edgese_live_start(p->weights, rate_hz > 4000000 ? 0 : (unsigned)rate_hz, p->channels, 0, error);
        if (p->live)
            return p;
        cleanup(p);
    }
    fprintf(stderr, "%s: %s\n", about->Label, error);
    return NULL;
}

static void connect_port(LADSPA_Handle handle, unsigned long port, LADSPA_Data *place)
{
    plugin *p = handle;
    if (port < PORTS)
        p->ports[port] = place;
}

static void activate(LADSPA_Handle handle)
{
    plugin *p = handle;
    edgese_live_reset(p->live);
}

static void run(LADSPA_Handle handle, unsigned long n)
{
    plugin *p = handle;
    edgese_live_process(p->live, (const float *const *)(p->ports + AUDIO), p->ports + AUDIO + p->channels, n,
                        p->ports[LIMIT] ? *p->ports[LIMIT] : EDGESE_NO_LIMIT, p->ports[MIX] ? *p->ports[MIX] : 1);
    if (p->ports[LATENCY])
        *p->ports[LATENCY] = (float)edgese_live_latency(p->live);
}

#define CONTROL_IN (LADSPA_PORT_INPUT | LADSPA_PORT_CONTROL)
#define CONTROL_OUT (LADSPA_PORT_OUTPUT | LADSPA_PORT_CONTROL)
#define AUDIO_IN (LADSPA_PORT_INPUT | LADSPA_PORT_AUDIO)
#define AUDIO_OUT (LADSPA_PORT_OUTPUT | LADSPA_PORT_AUDIO)
#define BOUNDED (LADSPA_HINT_BOUNDED_BELOW | LADSPA_HINT_BOUNDED_ABOVE)

#define CONTROL_NAMES "Attenuation limit (dB)", "Mix", "latency"
static const char *const mono_names[] = {CONTROL_NAMES, "Input", "Output"};
static const char *const stereo_names[] = {CONTROL_NAMES, "Input left", "Input right", "Output left", "Output right"};
static const LADSPA_PortDescriptor mono_ports[] = {CONTROL_IN, CONTROL_IN, CONTROL_OUT, AUDIO_IN, AUDIO_OUT};
static const LADSPA_PortDescriptor stereo_ports[] = {CONTROL_IN, CONTROL_IN, CONTROL_OUT, AUDIO_IN,
                                                     AUDIO_IN,   AUDIO_OUT,  AUDIO_OUT};
static const LADSPA_PortRangeHint hints[PORTS] = {
    {BOUNDED | LADSPA_HINT_DEFAULT_100, 0, EDGESE_NO_LIMIT}, {BOUNDED | LADSPA_HINT_DEFAULT_1, 0, 1}, {0, 0, 0}};

/* The numbers are not registered: labels tell the plugins apart. */
#define PLUGIN(id, label, name, which)                                                                      \
    {                                                                                                       \
        .UniqueID = id, .Label = label, .Properties = LADSPA_PROPERTY_HARD_RT_CAPABLE, .Name = name,         \
        .Maker = "edgese", .Copyright = "MIT", .PortCount = sizeof which##_ports / sizeof *which##_ports,    \
        .PortDescriptors = which##_ports, .PortNames = which##_names, .PortRangeHints = hints,               \
        .instantiate = instantiate, .connect_port = connect_port, .activate = activate, .run = run,          \
        .cleanup = cleanup,                                                                                 \
    }
static const LADSPA_Descriptor plugins[] = {
    PLUGIN(0xed6e51, "edgese_mono", "edgese speech enhancement (mono)", mono),
    PLUGIN(0xed6e52, "edgese_stereo", "edgese speech enhancement (stereo)", stereo),
};

__attribute__((visibility("default"))) const LADSPA_Descriptor *ladspa_descriptor(unsigned long index)
{
    return index < sizeof plugins / sizeof *plugins ? plugins + index : NULL;
}
