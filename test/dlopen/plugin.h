/* What a plugin and the program that opens it have in common. */

#ifndef TEST_PLUGIN_H
#define TEST_PLUGIN_H

/* The host's, called when the plugin is loaded. */
void plugin_loads(void);

/* The plugin's: allocates. */
void plugin_work(void);

#endif
