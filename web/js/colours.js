// Colours of our own slots and links, as the page's own types have theirs.

import { app } from "../../../scripts/app.js";

const COLOURS = { LONGLIVE_MODEL: "#8c9eff", LONGLIVE_SCHEDULE: "#26c6da", LONGLIVE_WINDOW: "#c0ca33" };
const STYLE = Object.entries(COLOURS).map(([type, colour]) => `--color-datatype-${type}: ${colour};`);

/** The classic nodes; again with each graph, since another palette of the page takes them off. */
function paint() {
  Object.assign(app.canvas?.default_connection_color_byType ?? {}, COLOURS);
  Object.assign(app.canvas?.constructor.link_type_colors ?? {}, COLOURS);
}

app.registerExtension({
  name: "LongLive.Colours",
  setup() {
    document.head.append(Object.assign(document.createElement("style"), { textContent: `:root { ${STYLE.join(" ")} }` }));
    paint();
  },
  afterConfigureGraph: paint,
});
