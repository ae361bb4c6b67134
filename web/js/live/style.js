/**
 * How the panel looks: the host's colours, so that it is at home in every theme. The last rule hides, in the
 * host's Vue nodes, the still picture of the newest block below a player that shows all of them.
 */

export const STYLE = `
.longlive-live { container-type: inline-size; display: flex; flex-direction: column; gap: 5px; height: 100%; padding: 4px; overflow: hidden;
  box-sizing: border-box; color: var(--input-text, #ddd); font: 12px/1.35 var(--font-inter, sans-serif); }
.longlive-live [hidden] { display: none !important; }
.longlive-live :is(button, select, input, textarea) { font: inherit; color: inherit; box-sizing: border-box;
  background: var(--comfy-input-bg, #222); border: 1px solid var(--border-color, #4e4e4e); border-radius: 4px; }
.longlive-live :is(button, select, input) { height: 24px; padding: 0 6px; }
.longlive-live button { cursor: pointer; white-space: nowrap; }
.longlive-live :is(button, select, input, textarea):disabled { opacity: .45; cursor: default; }
.longlive-live :is(button, select, input, textarea, video):focus-visible {
  outline: 2px solid var(--p-primary-color, #4b8bd4); outline-offset: -1px; }
.longlive-live button:hover:enabled { border-color: var(--input-text, #ddd); }
.longlive-live textarea { flex: none; height: 44px; padding: 4px 6px; resize: none; width: 100%; }
.longlive-live input[type=number] { width: 58px; }
.longlive-live-screen { position: relative; flex: 1 1 0; min-height: 110px; background: #000; border-radius: 4px; }
.longlive-live-hint { position: absolute; inset: 0; display: grid; place-items: center; padding: 0 15%; color: #999;
  text-align: center; }
.longlive-live-screen video { position: absolute; inset: 0; width: 100%; height: 100%; object-fit: contain; }
.longlive-live-screen button { position: absolute; top: 6px; right: 6px; background: #000a; color: #fff; }
.longlive-live-row { display: flex; flex: none; flex-wrap: wrap; gap: 4px; align-items: center; }
.longlive-live-row .longlive-live-main { margin-right: auto; background: var(--p-primary-color, #2f6db5);
  color: var(--p-primary-contrast-color, #fff); border-color: transparent; }
.longlive-live-seldom { display: flex; flex-wrap: wrap; margin-left: auto; }
.longlive-live-seldom button { background: none; border-color: transparent; color: var(--descrip-text, #999); }
.longlive-live-line { flex: none; max-width: 100%; overflow: hidden; white-space: nowrap; text-overflow: ellipsis; }
.longlive-live-row .longlive-live-quiet { flex: 1 1 0; min-width: 0; }
.longlive-live :is(.longlive-live-line, .longlive-live-strip):empty { display: none; }
.longlive-live-quiet { color: var(--descrip-text, #999); }
.longlive-live-error { color: var(--error-text, #ff4444); }
.longlive-live .longlive-live-notice { white-space: normal; max-height: 33px; }
.longlive-live .longlive-live-notes { white-space: pre-line; max-height: 49px; overflow-y: auto; user-select: text;
  color: var(--warning-text, #e0a030); }
.longlive-live .longlive-live-error { white-space: normal; max-height: 66px; overflow-y: auto; user-select: text; }
.longlive-live-strip { position: relative; flex: none; height: 22px; margin: 0; padding: 0; list-style: none;
  background: var(--comfy-input-bg, #222); border: 1px solid var(--border-color, #4e4e4e); border-radius: 4px; }
.longlive-live-strip li { position: absolute; top: 0; bottom: 0; padding: 0 4px; overflow: hidden; line-height: 20px;
  font-size: 11px; white-space: nowrap; text-overflow: ellipsis; box-sizing: border-box; min-width: 2px;
  border-left: 2px solid var(--descrip-text, #999); }
.longlive-live-strip li[data-origin=live] { border-left: 4px double var(--p-primary-color, #4b8bd4);
  background: color-mix(in srgb, var(--p-primary-color, #4b8bd4) 28%, transparent); }
@container (max-width: 420px) { /* as an input of an App */
  .longlive-live-row :is(button, select) { padding: 0 3px; font-size: 11px; } }
.lg-node:has(.longlive-live-screen) [data-testid^=node-body] > :is(img, img + div) { display: none; }
`;
