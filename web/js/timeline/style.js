// How the timeline looks: the host's own colours, in every theme.

// The new nodes' widgets, of which the text is a row of its name while the timeline does not show it.
const FOLDED = ".lg-node-widgets:has(.longlive-timeline:not(.ll-with-text))";

export const STYLE = `
.longlive-timeline { --ll-accent: #4a90e2; container-type: inline-size; position: relative; display: flex; flex-direction: column; gap: 4px; height: 100%;
  min-height: 0; box-sizing: border-box; overflow: hidden; padding: 2px; color: var(--input-text, #ddd);
  font: 12px/1.35 Inter, Arial, sans-serif; text-align: left; user-select: none; pointer-events: auto; }
.longlive-timeline * { box-sizing: border-box; }
.longlive-timeline :focus-visible { outline: 2px solid var(--ll-accent); outline-offset: -1px; }
.longlive-timeline .ll-bar { display: flex; flex-wrap: wrap; gap: 3px; align-items: center; flex: none; }
.longlive-timeline .ll-gap { flex: 1; }
.longlive-timeline button, .longlive-timeline select, .longlive-timeline input, .longlive-timeline textarea {
  font: inherit; color: inherit; background: var(--comfy-input-bg, #222); margin: 0;
  border: 1px solid var(--border-color, #4e4e4e); border-radius: 4px; padding: 2px 6px; height: 24px; width: auto; }
.longlive-timeline button { cursor: pointer; min-width: 24px; }
.longlive-timeline button:hover:not(:disabled) { border-color: var(--ll-accent); }
.longlive-timeline button:disabled { opacity: .4; cursor: default; }
.longlive-timeline button[aria-pressed=true] { border-color: var(--ll-accent); color: var(--ll-accent); }
.longlive-timeline .ll-scroll { flex: 3 1 84px; min-height: 84px; max-height: 150px; overflow-x: auto; overflow-y: hidden; scrollbar-width: thin;
  border: 1px solid var(--border-color, #4e4e4e); border-radius: 4px; background: var(--comfy-input-bg, #222); }
.longlive-timeline .ll-lane { position: relative; min-width: 100%; height: 100%; display: flex; flex-direction: column; }
.longlive-timeline .ll-ruler { position: relative; flex: none; height: 18px; overflow: hidden; cursor: copy;
  color: var(--descrip-text, #999); font-size: 10px; }
.longlive-timeline .ll-tick { position: absolute; top: 0; height: 100%; padding-left: 3px;
  border-left: 1px solid var(--descrip-text, #999); white-space: nowrap; }
.longlive-timeline .ll-beat { position: absolute; bottom: 0; height: 45%; width: 3px; margin-left: -1px;
  border-left: 1px solid var(--ll-accent); }
.longlive-timeline .ll-track { position: relative; flex: 1; overflow: hidden;
  border-top: 1px solid var(--border-color, #4e4e4e); }
.longlive-timeline .ll-grid { position: absolute; inset: 0; pointer-events: none; opacity: .22; z-index: 1;
  background-repeat: repeat-x; background-image: linear-gradient(90deg, var(--descrip-text, #999) 1px, transparent 1px); }
.longlive-timeline .ll-cue { position: absolute; top: 3px; bottom: 3px; overflow: hidden; border-radius: 4px;
  padding: 3px 6px 0 9px; cursor: grab; border: 1px solid hsl(var(--hue) 55% 50%);
  background: hsl(var(--hue) 60% 50% / .38); touch-action: none; }
.longlive-timeline .ll-cue[aria-selected=true] { background: hsl(var(--hue) 65% 50% / .6); z-index: 2;
  box-shadow: inset 0 0 0 1px hsl(var(--hue) 70% 55%); }
.longlive-timeline .ll-cue.ll-lost { opacity: .45; }
.longlive-timeline .ll-words { position: relative; z-index: 2; display: -webkit-box; -webkit-box-orient: vertical;
  -webkit-line-clamp: 3; overflow: hidden; overflow-wrap: anywhere; }
.longlive-timeline .ll-policy { position: relative; z-index: 2; font-size: 10px; font-weight: 600; opacity: .85;
  white-space: nowrap; }
.longlive-timeline .ll-blend { position: absolute; left: 0; top: 0; bottom: 0;
  background: linear-gradient(90deg, var(--comfy-input-bg, #222), transparent); opacity: .8; }
.longlive-timeline .ll-edge { position: absolute; left: 0; top: 0; bottom: 0; width: 8px; z-index: 3; cursor: ew-resize;
  border-left: 3px solid hsl(var(--hue) 70% 50%); touch-action: none; }
.longlive-timeline .ll-end { position: absolute; top: 0; bottom: 0; right: 0; z-index: 3; pointer-events: none;
  border-left: 2px dashed var(--error-text, #ff4444); color: var(--descrip-text, #999); font-size: 10px;
  padding: 20px 0 0 4px; white-space: nowrap; overflow: hidden; background: rgb(128 128 128 / .18); }
.longlive-timeline .ll-now { position: absolute; top: 0; bottom: 0; width: 2px; z-index: 4; background: var(--ll-accent);
  pointer-events: none; }
.longlive-timeline .ll-live { position: absolute; top: 3px; width: 11px; height: 11px; margin-left: -6px; z-index: 4;
  background: var(--ll-accent); clip-path: polygon(0 0, 100% 0, 50% 100%); }
.longlive-timeline .ll-drop { position: absolute; top: 0; bottom: 0; width: 3px; margin-left: -1px; z-index: 4;
  background: var(--ll-accent); pointer-events: none; }
.longlive-timeline.ll-stale .ll-scroll { opacity: .5; }
.longlive-timeline .ll-fields { display: flex; gap: 6px; align-items: center; flex: none; flex-wrap: wrap; }
.longlive-timeline .ll-fields label { display: flex; gap: 4px; align-items: center; color: var(--descrip-text, #999); }
.longlive-timeline .ll-fields input { width: 68px; color: var(--input-text, #ddd); }
.longlive-timeline .ll-always label { flex: 1; white-space: nowrap; }
.longlive-timeline .ll-always input { flex: 1; min-width: 0; }
.longlive-timeline .ll-fields select { color: var(--input-text, #ddd); }
.longlive-timeline textarea { flex: 2 1 44px; min-height: 40px; width: 100%; resize: none; padding: 4px 6px;
  user-select: text; }
.longlive-timeline .ll-status { flex: none; min-height: 16px; max-height: 48px; overflow: auto; font-size: 11px;
  color: var(--descrip-text, #999); user-select: text; }
.longlive-timeline .ll-status.ll-error { color: var(--error-text, #ff4444); }
.longlive-timeline .ll-help { position: absolute; top: 30px; left: 2px; right: 2px; z-index: 9;
  background: var(--comfy-menu-bg, #353535); white-space: pre-line; font-size: 11px; padding: 4px 6px;
  border: 1px solid var(--border-color, #4e4e4e); border-radius: 4px; color: var(--descrip-text, #999);
  max-height: calc(100% - 34px); overflow: auto; }
${FOLDED} { grid-template-rows: min-content auto !important; grid-auto-rows: min-content; }
${FOLDED} textarea:not(.longlive-timeline *) { display: none; }
${FOLDED} :has(> .lg-slot) { opacity: 1; }
@container (max-width: 500px) { /* as wide as a new node: the tools are one row in every language */
  .longlive-timeline .ll-bar button { min-width: 19px; padding: 2px 4px; } }
@container (max-width: 420px) { /* as an input of an App: the tools stay one row */
  .longlive-timeline .ll-bar { gap: 1px; }
  .longlive-timeline .ll-bar button { min-width: 14px; padding: 2px 1px; font-size: 10px; } }
@container (max-width: 310px) { .longlive-timeline .ll-bar .ll-order { display: none; } }
.longlive-timeline [hidden] { display: none !important; }
`;

/** The style, once in a page. */
export function addStyle(page) {
  if (page.getElementById("longlive-timeline-style")) return;
  const style = page.createElement("style");
  style.id = "longlive-timeline-style";
  style.textContent = STYLE;
  page.head.append(style);
}
